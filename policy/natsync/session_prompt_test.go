// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"vippin/policy"
)

// Each flow that the peer has taken is told of, as it was sent, though something
// newer waits; one that the peer refused is not.
func TestAcked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := meet(t, false, nil)
		p.s.SetState(ours)
		p.s.SetPrompt(true)
		putMany(p.s, 0, 10)
		p.say(hello(1, 1), state())
		synctest.Wait()
		moved, ended := udpFlow(4), udpFlow(5)
		moved.To.Port++
		p.s.Put(&moved)
		p.s.Gone(Gone{ended.FlowKey, ended.To})
		synctest.Wait()
		acked := func(want ...policy.Flow) {
			t.Helper()
			p.r.mu.Lock()
			defer p.r.mu.Unlock()
			if diff := cmp.Diff(want, p.r.acked, equal); diff != "" {
				t.Error(diff)
			}
			p.r.acked = nil
		}
		acked()
		p.say(ack(1, &WireRefusal{Index: 3, Reason: uint32(ReasonClash)}))
		synctest.Wait()
		acked(udpFlow(0), udpFlow(1), udpFlow(2), udpFlow(4), udpFlow(5), udpFlow(6), udpFlow(7), udpFlow(8), udpFlow(9))
		p.say(ack(p.s.Stats().Sent.Batches))
		synctest.Wait()
		acked(moved)
	})
}

// In an acknowledgement of several batches the refusals are of the last one.
func TestAckedOfSeveralBatches(t *testing.T) {
	q := newQueue()
	q.keep = true
	for seq := range uint64(3) {
		q.put(0, marked(1, uint32(10*seq)))
		q.put(0, marked(2, uint32(10*seq+1)))
		takeAll(&q, seq+1)
	}
	var got []uint32
	for _, f := range q.taken(nil, 2, []Refusal{{0, ReasonFull}, {0, ReasonFull}}) {
		got = append(got, f.Mark)
	}
	if len(got) != 3 || got[0] != 0 || got[1] != 1 || got[2] != 11 {
		t.Errorf("told of %v", got)
	}
	if flows, ok := q.refused(1, []Refusal{{1, ReasonFull}}); !ok || len(flows) != 1 || flows[0].Mark != 1 {
		t.Errorf("refused: %+v, not as it was sent", flows)
	}
}

// Who is prompt waits for nothing, and the peer's acknowledgements come at once; the
// peer's own flows gather as ever, and it is told of none.
func TestPrompt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		defer p.end()
		p.a.SetState(ours)
		p.b.SetState(ours)
		p.a.SetPrompt(true)
		pass(100 * time.Millisecond)
		late := 0
		for n := range 100 {
			putMany(p.a, n, n+1)
			f := udpFlow(n)
			synctest.Wait()
			if p.a.Pending(f.FlowKey) {
				late++
			}
			pass(time.Millisecond)
		}
		p.ra.mu.Lock()
		p.rb.mu.Lock()
		if s := p.a.Stats(); late != 0 || s.Sent.Batches != 100 || len(p.ra.acked) != 100 || len(p.rb.acked) != 0 {
			t.Errorf("%d acknowledgements are late, %d batches, told of %d and %d flows", late, s.Sent.Batches, len(p.ra.acked), len(p.rb.acked))
		}
		if !p.rb.state.Prompt || p.ra.state.Prompt {
			t.Errorf("a is prompt: %v, b: %v", p.rb.state.Prompt, p.ra.state.Prompt)
		}
		p.ra.mu.Unlock()
		p.rb.mu.Unlock()
		p.a.SetPrompt(false)
		pass(100 * time.Millisecond)
		for n := range 100 {
			putMany(p.b, 20*n, 20*(n+1))
			pass(time.Millisecond)
		}
		if s := p.b.Stats(); s.Sent.Batches > 18 || len(p.rb.acked) != 0 || p.rb.state.Prompt {
			t.Errorf("afterwards %d batches in 100 ms, told of %d flows, prompt %v", s.Sent.Batches, len(p.rb.acked), p.rb.state.Prompt)
		}
	})
}
