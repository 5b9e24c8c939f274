// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"vippin/policy"
)

// The tags of WireBatch.
const (
	tagSeq         = 1<<3 | uint64(protowire.VarintType)
	tagFlows       = 2<<3 | uint64(protowire.BytesType)
	tagGones       = 3<<3 | uint64(protowire.BytesType)
	tagExpectation = 4<<3 | uint64(protowire.BytesType)
)

// batchWriter writes a WireBatch entry by entry.
type batchWriter struct {
	b     []byte
	ids   *idTable
	flows int // so far, gones and expectations not counted
}

func (w *batchWriter) begin(seq uint64) {
	w.b, w.flows = appendVarint(w.b[:0], tagSeq, seq), 0
}

// flow writes a flow, or nothing if it fails with errUnnamed.
func (w *batchWriter) flow(f *policy.Flow) error {
	at := w.open(tagFlows)
	b, err := appendFlow(w.b, f, w.ids)
	if err != nil {
		w.b = w.b[:at-2]
		return err
	}
	w.b = b
	w.close(at)
	w.flows++
	return nil
}

func (w *batchWriter) gone(g *Gone) {
	at := w.open(tagGones)
	w.b = appendGone(w.b, g)
	w.close(at)
}

func (w *batchWriter) expectation(e *policy.Expectation) error {
	b, err := proto.Marshal(expectationToWire(e))
	if err != nil {
		return err
	}
	w.b = protowire.AppendBytes(protowire.AppendVarint(w.b, tagExpectation), b)
	return nil
}

// open begins an entry and leaves one octet for its length.
func (w *batchWriter) open(tag uint64) (at int) {
	w.b = append(w.b, byte(tag), 0)
	return len(w.b)
}

// close writes the length of the entry that begins at at. One of 128 octets or more
// moves on to make room for it.
func (w *batchWriter) close(at int) {
	size := len(w.b) - at
	if size < 0x80 {
		w.b[at-1] = byte(size)
		return
	}
	more := protowire.SizeVarint(uint64(size)) - 1
	w.b = append(w.b, make([]byte, more)...)
	copy(w.b[at+more:], w.b[at:at+size])
	protowire.AppendVarint(w.b[:at-1], uint64(size))
}

// batchReader reads WireBatches into a Batch that it uses again.
type batchReader struct {
	names nameTable
	flow  flowReader
	gone  policy.Flow
	Batch
}

// readBatch reads a WireBatch. The Batch is valid until the next one.
func (r *batchReader) readBatch(b []byte) (seq uint64, err error) {
	r.Flows, r.Gones, r.Expectations = r.Flows[:0], r.Gones[:0], r.Expectations[:0]
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return 0, fmt.Errorf("read a tag: %w", protowire.ParseError(n))
		}
		used := protowire.ConsumeFieldValue(num, typ, b[n:])
		if used < 0 {
			return 0, fmt.Errorf("field %d: %w", num, protowire.ParseError(used))
		}
		value := b[n : n+used]
		b = b[n+used:]
		switch tag := protowire.EncodeTag(num, typ); tag {
		case tagSeq:
			seq, _ = protowire.ConsumeVarint(value)
		case tagFlows, tagGones, tagExpectation:
			value, _ = protowire.ConsumeBytes(value)
			if err := r.entry(tag, value); err != nil {
				return seq, err
			}
		}
	}
	return seq, nil
}

// entry reads a flow, a gone or an expectation.
func (r *batchReader) entry(tag uint64, b []byte) error {
	if len(r.Flows)+len(r.Gones)+len(r.Expectations) == MaxBatch {
		return fmt.Errorf("over %d entries", MaxBatch)
	}
	switch tag {
	case tagFlows:
		r.Flows = append(r.Flows, policy.Flow{})
		if err := r.readFlow(b); err != nil {
			return fmt.Errorf("flow %d: %w", len(r.Flows)-1, err)
		}
	case tagGones:
		g, err := r.readGone(b)
		if err != nil {
			return fmt.Errorf("gone %d: %w", len(r.Gones), err)
		}
		r.Gones = append(r.Gones, g)
	case tagExpectation:
		e, err := readExpectation(b)
		if err != nil {
			return fmt.Errorf("expectation %d: %w", len(r.Expectations), err)
		}
		r.Expectations = append(r.Expectations, e)
	}
	return nil
}

// readFlow reads a flow into the last place.
func (r *batchReader) readFlow(b []byte) error {
	f := &r.Flows[len(r.Flows)-1]
	if err := r.flow.readFlow(b, f); err != nil {
		return err
	}
	if err := checkFlow(f); err != nil {
		return err
	}
	return r.names.name(&r.flow)
}

func (r *batchReader) readGone(b []byte) (Gone, error) {
	r.gone = policy.Flow{}
	if err := r.flow.readFlow(b, &r.gone); err != nil {
		return Gone{}, err
	}
	g := Gone{r.gone.FlowKey, r.gone.To}
	return g, checkGone(&g)
}

func checkGone(g *Gone) error {
	if err := checkKey(&g.Key); err != nil {
		return err
	}
	return checkOthers(&g.Key, &g.To, &g.Key.Dst)
}
