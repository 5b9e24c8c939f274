// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"vippin/policy"
)

var equal = cmp.Options{cmp.Comparer(func(a, b netip.Addr) bool { return a == b })}

// testNames is what both sides know of ours.
func testNames(t testing.TB) (*idTable, nameTable) {
	wire, ids := stateToWire(ours)
	b, err := proto.Marshal(wire)
	if err != nil {
		t.Fatal(err)
	}
	_, names, err := readState(b)
	if err != nil {
		t.Fatal(err)
	}
	return ids, names
}

// randomFlow is a flow that makes sense, with anything that a flow may have.
func randomFlow(r *rand.Rand) policy.Flow {
	protos := []uint8{ipICMP, ipTCP, ipUDP, ipDCCP, 47, ipICMPv6, ipSCTP, ipUDPLite, 255}
	f := policy.Flow{FlowKey: policy.FlowKey{Proto: protos[r.IntN(len(protos))], Zone: few(r)}}
	four := r.IntN(2) == 0
	for _, e := range []*policy.End{&f.Src, &f.Dst, &f.From, &f.To} {
		*e = randomEnd(r, four)
	}
	if r.IntN(2) == 0 {
		f.From = f.Dst
	}
	if r.IntN(2) == 0 {
		f.To.Port = f.Src.Port
	}
	switch portsOf(f.Proto, four) {
	case portsNone:
		f.Src.Port, f.To.Port = 0, 0
		fallthrough
	case portsEcho:
		f.Dst.Port, f.From.Port = 0, 0
	}
	if f.Proto == ipTCP {
		f.TCPState, f.TCPScale = uint8(r.IntN(10)), [2]uint8{uint8(r.IntN(15)), uint8(r.IntN(15))}
	}
	f.Bits, f.Mark = policy.FlowBits(r.IntN(4)), uint32(few(r))<<16
	f.Timeout = time.Duration(few(r)) * time.Second
	f.Group = []string{"", "Core", "Edge"}[r.IntN(3)]
	if r.IntN(2) == 0 {
		f.Pin = pinName
	}
	if r.IntN(3) == 0 {
		f.Extra = randomExtra(r, f.Proto)
	}
	return f
}

// few is 0 half of the time.
func few(r *rand.Rand) uint16 {
	if r.IntN(2) == 0 {
		return 0
	}
	return uint16(r.Uint32())
}

func randomEnd(r *rand.Rand, four bool) policy.End {
	e := policy.End{Port: uint16(r.Uint32())}
	if four {
		e.Addr = [16]byte{10: 0xff, 11: 0xff, 12: 198, 13: 18}
	} else {
		e.Addr = [16]byte{0x20, 0x01, 0x0d, 0xb8}
	}
	binary.BigEndian.PutUint16(e.Addr[14:], uint16(r.Uint32()))
	return e
}

func randomExtra(r *rand.Rand, proto uint8) *policy.FlowExtra {
	x := &policy.FlowExtra{Helper: []string{"", "ftp"}[r.IntN(2)]}
	if proto == ipSCTP {
		x.SCTPState, x.SCTPTags = uint8(r.IntN(10)), [2]uint32{r.Uint32(), uint32(few(r))}
	}
	if r.IntN(2) == 0 {
		x.Master = udpFlow(r.IntN(1000)).FlowKey
		x.Adjust[r.IntN(2)] = policy.SeqAdjust{Position: r.Uint32(), Before: -3, After: int32(few(r))}
	}
	return x
}

func randomExpectation(r *rand.Rand) policy.Expectation {
	e := policy.Expectation{
		Master:  udpFlow(r.IntN(1000)).FlowKey,
		Dst:     randomEnd(r, true),
		Proto:   ipTCP,
		AnySrc:  r.IntN(2) == 0,
		Timeout: time.Duration(few(r)) * time.Second,
		Helper:  "ftp", Class: uint32(few(r)), Flags: uint32(few(r)),
	}
	if !e.AnySrc {
		e.Src = randomEnd(r, true)
	}
	if r.IntN(2) == 0 {
		e.Function, e.NAT, e.NATReply = "nat-follow-master", randomEnd(r, true), true
	}
	return e
}

// randomBatch fills a batch, and its octets.
func randomBatch(t testing.TB, r *rand.Rand, ids *idTable, seq uint64) (want Batch, b []byte) {
	w := batchWriter{ids: ids}
	w.begin(seq)
	for range 1 + r.IntN(20) {
		f, gone, e := randomFlow(r), randomFlow(r), randomExpectation(r)
		g := Gone{gone.FlowKey, gone.To}
		if err := w.flow(&f); err != nil {
			t.Fatal(err)
		}
		w.gone(&g)
		if err := w.expectation(&e); err != nil {
			t.Fatal(err)
		}
		want.Flows, want.Gones, want.Expectations = append(want.Flows, f), append(want.Gones, g), append(want.Expectations, e)
	}
	return want, w.b
}

func TestBatchRoundTrip(t *testing.T) {
	ids, names := testNames(t)
	reader := batchReader{names: names}
	for seed := range uint64(100) {
		want, b := randomBatch(t, rand.New(rand.NewPCG(seed, 0)), ids, seed+1)
		seq, err := reader.readBatch(b)
		if err != nil || seq != seed+1 {
			t.Fatalf("seed %d: seq %d, %v", seed, seq, err)
		}
		if diff := cmp.Diff(want, reader.Batch, equal); diff != "" {
			t.Fatalf("seed %d: %s", seed, diff)
		}
	}
}

// flowToWire says the same as appendFlow by way of the schema.
func flowToWire(f *policy.Flow, ids *idTable) *WireFlow {
	key := keyToWire(&f.FlowKey)
	w := &WireFlow{Proto: key.Proto, SrcPort: key.SrcPort, DstPort: key.DstPort, Zone: key.Zone}
	w.Src4, w.Src6 = splitAddr(&f.Src)
	w.Dst4, w.Dst6 = splitAddr(&f.Dst)
	if f.To.Addr != f.Src.Addr {
		w.To4, w.To6 = splitAddr(&f.To)
	}
	if f.From.Addr != f.Dst.Addr {
		w.From4, w.From6 = splitAddr(&f.From)
	}
	if f.To.Port != f.Src.Port {
		w.ToPort = proto.Uint32(uint32(f.To.Port))
	}
	if f.From.Port != f.Dst.Port {
		w.FromPort = proto.Uint32(uint32(f.From.Port))
	}
	pin, pinGroup, _ := ids.pin(f.Pin)
	if w.Pin = pin; f.Group != pinGroup {
		group, _ := ids.group(f.Group)
		w.Group = proto.Uint32(group)
	}
	w.Timeout, w.Bits, w.Mark = uint32(f.Timeout/time.Second), uint32(f.Bits), f.Mark
	w.Tcp = uint32(f.TCPState) + 16*uint32(f.TCPScale[0]) + 256*uint32(f.TCPScale[1])
	if f.Extra != nil {
		w.Extra = extraToWire(f.Extra)
	}
	return w
}

func splitAddr(e *policy.End) (*uint32, []byte) {
	if e.Is4() {
		return proto.Uint32(binary.BigEndian.Uint32(e.Addr[12:])), nil
	}
	return nil, e.Addr[:]
}

// The hand-written code and the schema say the same, both ways.
func TestFlowAgreesWithTheSchema(t *testing.T) {
	ids, names := testNames(t)
	for seed := range uint64(500) {
		f := randomFlow(rand.New(rand.NewPCG(seed, 1)))
		b, err := appendFlow(nil, &f, ids)
		if err != nil {
			t.Fatal(err)
		}
		want, got := flowToWire(&f, ids), &WireFlow{}
		if err := proto.Unmarshal(b, got); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Fatalf("seed %d: the schema reads\n%s", seed, diff)
		}
		b, err = proto.Marshal(&WireBatch{Seq: 9, Flows: []*WireFlow{want}})
		if err != nil {
			t.Fatal(err)
		}
		r := batchReader{names: names}
		if seq, err := r.readBatch(b); err != nil || seq != 9 {
			t.Fatalf("seed %d: seq %d, %v", seed, seq, err)
		}
		if diff := cmp.Diff(f, r.Flows[0], equal); diff != "" {
			t.Fatalf("seed %d: of the schema's octets is read\n%s", seed, diff)
		}
	}
}

func TestSizeOnTheWire(t *testing.T) {
	ids, _ := testNames(t)
	w := batchWriter{ids: ids}
	w.begin(1)
	empty := len(w.b)
	f := udpFlow(54321)
	if err := w.flow(&f); err != nil {
		t.Fatal(err)
	}
	if size := len(w.b) - empty; size > 40 {
		t.Errorf("a pinned IPv4 UDP flow takes %d octets", size)
	}
}

func TestBadFlows(t *testing.T) {
	six := make([]byte, 16)
	six[0], six[15] = 0x20, 1
	mapped := append(make([]byte, 10), 0xff, 0xff, 1, 2, 3, 4)
	for _, c := range []struct {
		want string
		bad  func(w *WireFlow)
	}{
		{"proto is 0", func(w *WireFlow) { w.Proto = 0 }},
		{"proto is 256, over 255", func(w *WireFlow) { w.Proto = 256 }},
		{"src is missing", func(w *WireFlow) { w.Src4 = nil }},
		{"dst is missing", func(w *WireFlow) { w.Dst4 = nil }},
		{"src_port is 65536", func(w *WireFlow) { w.SrcPort = 65536 }},
		{"dst_port is 65536", func(w *WireFlow) { w.DstPort = 65536 }},
		{"to_port is 65536", func(w *WireFlow) { w.ToPort = proto.Uint32(65536) }},
		{"from_port is 65536", func(w *WireFlow) { w.FromPort = proto.Uint32(65536) }},
		{"zone is 65536", func(w *WireFlow) { w.Zone = 65536 }},
		{"not of one family", func(w *WireFlow) { w.To4, w.To6 = nil, six }},
		{"not of one family", func(w *WireFlow) { w.From6 = six }},
		{"not of one family", func(w *WireFlow) { w.Dst4, w.Dst6 = nil, six }},
		{"src6 is no IPv6 address", func(w *WireFlow) { w.Src6 = six[:15] }},
		{"to6 is no IPv6 address", func(w *WireFlow) { w.To6 = mapped }},
		{"unspecified", func(w *WireFlow) { w.Src4 = proto.Uint32(0) }},
		{"no ports", func(w *WireFlow) { w.Proto = 47 }},
		{"no ports", func(w *WireFlow) { w.Proto, w.SrcPort, w.DstPort, w.ToPort = 47, 0, 0, proto.Uint32(1) }},
		{"identifier in dst_port", func(w *WireFlow) { w.Proto = ipICMP }},
		{"identifier in dst_port or from_port", func(w *WireFlow) { w.Proto, w.DstPort, w.FromPort = ipICMP, 0, proto.Uint32(5) }},
		{"tcp is set", func(w *WireFlow) { w.Tcp = 3 }},
		{"tcp has a state", func(w *WireFlow) { w.Proto, w.Tcp = ipTCP, 10 }},
		{"scale over 14", func(w *WireFlow) { w.Proto, w.Tcp = ipTCP, 15<<4 }},
		{"scale over 14", func(w *WireFlow) { w.Proto, w.Tcp = ipTCP, 15<<8 }},
		{"tcp is 4096", func(w *WireFlow) { w.Proto, w.Tcp = ipTCP, 4096 }},
		{"pin id 2 is not", func(w *WireFlow) { w.Pin = 2 }},
		{"pin id 4294967295 is not", func(w *WireFlow) { w.Pin = 1<<32 - 1 }},
		{"group id 3 is not", func(w *WireFlow) { w.Group = proto.Uint32(3) }},
		{"sctp_state or a tag", func(w *WireFlow) { w.Extra = &WireExtra{SctpState: 1} }},
		{"sctp_state does not", func(w *WireFlow) { w.Proto, w.Extra = ipSCTP, &WireExtra{SctpState: 10} }},
		{"helper", func(w *WireFlow) { w.Extra = &WireExtra{Helper: strings.Repeat("x", 65)} }},
		{"helper", func(w *WireFlow) { w.Extra = &WireExtra{Helper: "\x1b[2J"} }},
		{"master: src: 3 octets", func(w *WireFlow) { w.Extra = &WireExtra{Master: &WireKey{Proto: 6, Src: six[:3]}} }},
		{"master: dst: port is 65536", func(w *WireFlow) {
			w.Extra = &WireExtra{Master: &WireKey{Proto: 6, Src: six, Dst: six, DstPort: 65536}}
		}},
		{"master: proto", func(w *WireFlow) { w.Extra = &WireExtra{Master: &WireKey{}} }},
	} {
		ids, names := testNames(t)
		f := udpFlow(1)
		w := flowToWire(&f, ids)
		c.bad(w)
		b, err := proto.Marshal(&WireBatch{Seq: 1, Flows: []*WireFlow{flowToWire(&f, ids), w}})
		if err != nil {
			t.Fatal(err)
		}
		r := batchReader{names: names}
		if _, err := r.readBatch(b); err == nil || !strings.Contains(err.Error(), "flow 1: ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("want flow 1: … %s, got %v", c.want, err)
		}
	}
}

func TestBatchIsBounded(t *testing.T) {
	ids, names := testNames(t)
	w := batchWriter{ids: ids}
	w.begin(1)
	for n := range MaxBatch {
		f := udpFlow(n)
		if err := w.flow(&f); err != nil {
			t.Fatal(err)
		}
	}
	r := batchReader{names: names}
	if _, err := r.readBatch(w.b); err != nil {
		t.Errorf("%d flows: %v", MaxBatch, err)
	}
	f := udpFlow(0)
	w.gone(&Gone{f.FlowKey, f.To})
	if _, err := r.readBatch(w.b); err == nil {
		t.Errorf("%d entries are taken", MaxBatch+1)
	}
}

func TestFlowThatStateDoesNotName(t *testing.T) {
	ids, _ := testNames(t)
	w := batchWriter{ids: ids}
	w.begin(1)
	before := bytes.Clone(w.b)
	for _, change := range []func(f *policy.Flow){
		func(f *policy.Flow) { f.Pin.VLAN.Outer = 3 },
		func(f *policy.Flow) { f.Group = "Attic" },
	} {
		f := udpFlow(1)
		change(&f)
		if err := w.flow(&f); !errors.Is(err, errUnnamed) || !bytes.Equal(w.b, before) {
			t.Errorf("%v, %x in the batch", err, w.b)
		}
	}
}

// A frame is what protodelim writes and reads.
func TestFramesAreProtodelim(t *testing.T) {
	hello := helloToWire(Hello{1, 1, "router-a", "v1", [16]byte{7}})
	b, err := appendMessage(nil, frameHello, hello)
	if err != nil {
		t.Fatal(err)
	}
	var frame WireFrame
	if err := protodelim.UnmarshalFrom(bufio.NewReader(bytes.NewReader(b)), &frame); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(hello, frame.GetHello(), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	var again bytes.Buffer
	if _, err := protodelim.MarshalTo(&again, &frame); err != nil || !bytes.Equal(again.Bytes(), b) {
		t.Errorf("protodelim writes %x, we %x (%v)", again.Bytes(), b, err)
	}
	two := append(bytes.Clone(b[1:]), 2<<3|2, 0)
	if _, _, err := splitFrame(two); err == nil || !strings.Contains(err.Error(), "hello and state in one") {
		t.Errorf("two messages in a frame: %v", err)
	}
	kinds := frame.ProtoReflect().Descriptor().Fields()
	if kinds.Len() != int(lastFrame) {
		t.Errorf("%d kinds of frames in the schema, %d here", kinds.Len(), lastFrame)
	}
}

// A stream that ends anywhere, and a message that ends anywhere, is an error or a
// shorter message, never a panic.
func TestTruncation(t *testing.T) {
	ids, names := testNames(t)
	_, batch := randomBatch(t, rand.New(rand.NewPCG(1, 2)), ids, 1)
	stream := appendFrame(nil, frameBatch, batch)
	for n := range len(stream) {
		r := frameReader{from: bufio.NewReader(bytes.NewReader(stream[:n]))}
		want := io.ErrUnexpectedEOF
		if n == 0 {
			want = io.EOF
		}
		if _, err := r.next(); !errors.Is(err, want) {
			t.Fatalf("stream of %d of %d octets: %v", n, len(stream), err)
		}
	}
	r := batchReader{names: names}
	bad := 0
	for n := range len(batch) {
		if _, err := r.readBatch(batch[:n]); err != nil {
			bad++
		}
	}
	if entries := len(r.Flows) + len(r.Gones) + len(r.Expectations); bad < len(batch)-entries-2 {
		t.Errorf("%d of %d truncated batches are errors, with %d entries", bad, len(batch), entries)
	}
}

func TestOversize(t *testing.T) {
	b := binary.AppendUvarint(nil, MaxFrame+1)
	r := frameReader{from: bufio.NewReader(bytes.NewReader(b))}
	if _, err := r.next(); !errors.Is(err, ErrProtocol) || cap(r.buf) != 0 {
		t.Errorf("%v with %d octets allocated", err, cap(r.buf))
	}
	many := &WireState{Groups: make([]*WireGroup, MaxGroups+1)}
	for i := range many.Groups {
		many.Groups[i] = &WireGroup{Id: uint32(i + 1), Name: "g"}
	}
	for _, size := range []int{MaxGroups, MaxGroups + 1} {
		b, err := proto.Marshal(&WireState{Groups: many.Groups[:size]})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := readState(b); (err != nil) != (size > MaxGroups) {
			t.Errorf("%d groups: %v", size, err)
		}
	}
	// Two octets each on the wire, fifty times that in memory.
	flood := bytes.Repeat([]byte{1<<3 | 2, 0}, MaxFrame/2)
	if allocated := testing.AllocsPerRun(1, func() { readState(flood) }); allocated > 100 {
		t.Errorf("a flood of empty groups makes %.0f allocations", allocated)
	}
}
