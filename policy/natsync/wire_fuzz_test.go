// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"

	"vippin/policy"
)

// seedFrames are frames of every kind, without their lengths.
func seedFrames(t testing.TB) (frames [][]byte) {
	ids, _ := testNames(t)
	for seed := range uint64(5) {
		_, b := randomBatch(t, rand.New(rand.NewPCG(seed, 5)), ids, 1)
		b = appendFrame(nil, frameBatch, b)
		_, size := binary.Uvarint(b)
		frames = append(frames, b[size:])
	}
	for _, f := range []*WireFrame{hello(1, 1), state(), batch(1, wireFlow(1)), ack(1, &WireRefusal{Reason: 1}),
		{Kind: &WireFrame_BulkBegin{BulkBegin: &WireBulkBegin{Bulk: 1, Groups: []string{"Core", ""}, About: 9}}},
		{Kind: &WireFrame_BulkEnd{BulkEnd: &WireBulkEnd{Bulk: 1, Count: 9}}},
		{Kind: &WireFrame_BulkRequest{BulkRequest: &WireBulkRequest{Groups: []string{"Core"}}}},
		{Kind: &WireFrame_State{State: &WireState{Prompt: true}}},
		digest([]byte("{}")),
	} {
		b, err := proto.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		frames = append(frames, b)
	}
	return frames
}

// reading is a frame taken apart, whichever kind it is.
type reading struct {
	kind     frameKind
	hello    Hello
	state    State
	seq      uint64
	batch    Batch
	refusals []Refusal
	begin    bulkBegin
	end      bulkEnd
	wanted   []string
	digest   []byte
}

func readFrame(b []byte, names nameTable) (x reading, err error) {
	var payload []byte
	if x.kind, payload, err = splitFrame(b); err != nil {
		return x, err
	}
	switch x.kind {
	case frameHello:
		x.hello, err = readHello(payload)
	case frameState:
		x.state, _, err = readState(payload)
	case frameBatch:
		r := batchReader{names: names}
		x.seq, err = r.readBatch(payload)
		x.batch = r.Batch
	case frameAck:
		x.seq, x.refusals, err = readAck(payload)
	case frameBulkBegin:
		x.begin, err = readBulkBegin(payload)
	case frameBulkEnd:
		x.end.bulk, x.end.count, err = readBulkEnd(payload)
	case frameBulkRequest:
		x.wanted, err = readBulkRequest(payload)
	case frameDigest:
		x.digest, err = readDigest(payload)
	}
	return x, err
}

// write writes a reading down again, the way a session would.
func (x *reading) write(t *testing.T, ids *idTable) []byte {
	var m proto.Message
	switch x.kind {
	case frameHello:
		m = helloToWire(x.hello)
	case frameState:
		m, _ = stateToWire(x.state)
	case frameBatch:
		w := batchWriter{ids: ids}
		w.begin(x.seq)
		for i := range x.batch.Flows {
			if err := w.flow(&x.batch.Flows[i]); err != nil {
				t.Fatal(err)
			}
		}
		for i := range x.batch.Gones {
			w.gone(&x.batch.Gones[i])
		}
		for i := range x.batch.Expectations {
			if err := w.expectation(&x.batch.Expectations[i]); err != nil {
				t.Fatal(err)
			}
		}
		return appendFrame(nil, frameBatch, w.b)
	case frameAck:
		m = ackToWire(x.seq, x.refusals)
	case frameBulkBegin:
		m = &WireBulkBegin{Bulk: x.begin.bulk, Groups: x.begin.groups, About: x.begin.about}
	case frameBulkEnd:
		m = &WireBulkEnd{Bulk: x.end.bulk, Count: x.end.count}
	case frameBulkRequest:
		m = &WireBulkRequest{Groups: x.wanted}
	case frameDigest:
		m = &WireDigest{Digest: x.digest}
	default:
		return nil
	}
	b, err := appendMessage(nil, x.kind, m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// distinct leaves out what stateToWire leaves out.
func (x *reading) distinct() {
	wire, _ := stateToWire(x.state)
	b, _ := proto.Marshal(wire)
	x.state, _, _ = readState(b)
}

// Any octets are an error, or a frame that is the same when written and read again.
func FuzzFrame(f *testing.F) {
	for _, b := range seedFrames(f) {
		f.Add(b)
	}
	ids, names := testNames(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > MaxFrame {
			return
		}
		x, err := readFrame(b, names)
		if err != nil || x.kind == 0 {
			return
		}
		if len(x.batch.Flows)+len(x.batch.Gones)+len(x.batch.Expectations) > MaxBatch {
			t.Errorf("%d flows are taken", len(x.batch.Flows))
		}
		x.distinct()
		again := x.write(t, ids)
		r := frameReader{}
		r.from = bufio.NewReader(bytes.NewReader(again))
		frame, err := r.next()
		if err != nil {
			return // what is left out here may be longer written out: a bulk's groups
		}
		y, err := readFrame(frame, names)
		if err != nil {
			t.Fatalf("%+v is not read again: %v", x, err)
		}
		if !reflect.DeepEqual(x, y) {
			t.Errorf("%+v\nis read again as %+v", x, y)
		}
	})
}

// A peer that says any octets after its hello, or instead of it, ends a session, and
// no flow that makes no sense comes through.
func FuzzSession(f *testing.F) {
	opening, err := appendMessage(nil, frameHello, hello(1, 1).GetHello())
	if err != nil {
		f.Fatal(err)
	}
	opening, err = appendMessage(opening, frameState, state().GetState())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(false, opening)
	var all []byte
	for _, b := range seedFrames(f) {
		kind, payload, err := splitFrame(b)
		if err != nil {
			f.Fatal(err)
		}
		all = appendFrame(all, kind, payload)
		f.Add(true, appendFrame(nil, kind, payload))
	}
	f.Add(true, all)
	f.Fuzz(func(t *testing.T, polite bool, said []byte) {
		r := newRouter()
		s := NewSession(Config{Node: "router-a", Handler: r})
		s.SetState(ours)
		putMany(s, 0, 5)
		conn, peer := net.Pipe()
		done := make(chan error)
		go func() { done <- s.Run(context.Background(), conn) }()
		drained := make(chan struct{})
		go func() {
			io.Copy(io.Discard, peer)
			close(drained)
		}()
		if polite {
			peer.Write(opening)
		}
		peer.Write(said) // fails when the session ends before
		peer.Close()
		if err := <-done; err == nil {
			t.Error("the session ends without an error")
		}
		<-drained
		for _, f := range r.flows {
			if err := checkFlow(&f); err != nil {
				t.Errorf("%+v came through: %v", f, err)
			}
			if f.Pin != (policy.PinName{}) && !f.Pin.VIP.IsValid() {
				t.Errorf("%+v has no pin", f)
			}
		}
	})
}
