// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"testing"

	"google.golang.org/protobuf/proto"
)

// thrifty is a handler that uses its refusals' memory again.
type thrifty struct {
	*router
	said []Refusal
}

func (h *thrifty) Batch(b *Batch) []Refusal {
	h.said = append(h.said[:0], h.router.Batch(b)...)
	return h.said
}

// What a handler refuses of a batch is told of this batch, also when others come
// before it is told.
func TestRefusalsAreKept(t *testing.T) {
	h := &thrifty{router: newRouter()}
	h.refuse[udpFlow(0).FlowKey] = ReasonClash
	_, names := testNames(t)
	r := &reader{Session: NewSession(Config{Node: "router-a", Handler: h}), batch: batchReader{names: names}}
	const batches = 5
	for seq := uint64(1); seq <= batches; seq++ {
		b := &WireBatch{Seq: seq}
		for n := range seq { // the refused one comes last
			b.Flows = append(b.Flows, wireFlow(int(seq-1-n)))
		}
		octets, err := proto.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.takeBatch(octets); err != nil {
			t.Fatal(err)
		}
	}
	if len(r.acks.refused) != batches { // nobody writes here
		t.Fatalf("%d acknowledgements wait, want %d", len(r.acks.refused), batches)
	}
	for _, b := range r.acks.refused {
		if got, want := b.refusals[0].Index, int(b.seq-1); len(b.refusals) != 1 || got != want {
			t.Errorf("batch %d: refused is %d, want %d", b.seq, got, want)
		}
	}
}
