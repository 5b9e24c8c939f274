// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestBulk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		defer p.end()
		p.a.SetState(ours)
		p.b.RequestBulk([]string{"Core", ""})
		pass(10 * time.Millisecond)
		p.a.BeginBulk([]string{"Core", ""}, 7000)
		for n := range 7005 {
			f := udpFlow(n)
			if err := p.a.PutBulk(t.Context(), &f); err != nil {
				t.Fatal(err)
			}
		}
		p.a.EndBulk()
		pass(50 * time.Millisecond)
		if want := []string{"begin ,Core", "end ,Core 5"}; !slices.Equal(p.rb.bulks, want) || !slices.Equal(p.ra.bulks, []string{"wanted ,Core"}) {
			t.Errorf("%q, %q", p.rb.bulks, p.ra.bulks)
		}
		want := Bulk{Done: true, Flows: 7005, Total: 7005}
		if a, b := p.a.Stats().Sent.Bulk, p.b.Stats().Received.Bulk; len(p.rb.flows) != 7005 || a != want || b != want {
			t.Errorf("%d flows, sent %+v, received %+v", len(p.rb.flows), a, b)
		}
	})
}

// A flow of the bulk comes between its beginning and its end, also if it waited
// before: else the peer would sweep it away.
func TestBulkHasWhatWaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		order := &bulkOrder{}
		p := newPair(t, func(_, b *Config) {
			order.router = b.Handler.(*router)
			b.Handler = order
		})
		defer p.end()
		told, gone := udpFlow(1), udpFlow(2)
		told.Mark = 5
		p.a.Put(&told) // before State: nothing has gone out
		p.a.Gone(Gone{gone.FlowKey, gone.To})
		p.a.BeginBulk([]string{"Core"}, 0)
		for n := 1; n < 4; n++ {
			f := udpFlow(n)
			if err := p.a.PutBulk(t.Context(), &f); err != nil {
				t.Fatal(err)
			}
		}
		p.a.EndBulk()
		p.a.SetState(ours)
		pass(10 * time.Millisecond)
		if order.before != 0 || order.during != 2 || order.after != 0 || len(p.rb.gones) != 1 {
			t.Errorf("%d flows before, %d during, %d after the bulk", order.before, order.during, order.after)
		}
		if got := p.rb.flows[told.FlowKey]; got.Mark != 5 {
			t.Errorf("the bulk's older word was taken: mark %d", got.Mark)
		}
	})
}

// bulkOrder counts flows by whether they come in a bulk.
type bulkOrder struct {
	*router
	running, ended        bool
	before, during, after int
}

func (o *bulkOrder) BulkBegin([]string) { o.running = true }

func (o *bulkOrder) BulkEnd([]string, uint64) { o.running, o.ended = false, true }

func (o *bulkOrder) Batch(b *Batch) []Refusal {
	switch {
	case o.running:
		o.during += len(b.Flows)
	case o.ended:
		o.after += len(b.Flows)
	default:
		o.before += len(b.Flows)
	}
	return o.router.Batch(b)
}

// A bulk waits for the peer; changes of flows do not.
func TestBackPressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		defer p.end()
		p.rb.hold = make(chan struct{})
		p.a.SetState(ours)
		p.a.BeginBulk([]string{"Core"}, 0)
		const flows = 3 * (bulkRoom + window*batchFlows)
		put := 0
		done := make(chan error)
		go func() {
			for ; put < flows; put++ {
				f := udpFlow(put)
				if err := p.a.PutBulk(t.Context(), &f); err != nil {
					done <- err
					return
				}
			}
			p.a.EndBulk()
			done <- nil
		}()
		pass(time.Second)
		if limit := bulkRoom + window*batchFlows + 1; put > limit || p.a.Stats().Lag > limit {
			t.Errorf("%d flows are under way to a peer that takes none", p.a.Stats().Lag)
		}
		changed := udpFlow(flows + 1)
		p.a.Put(&changed)
		if !p.a.Pending(changed.FlowKey) {
			t.Error("a change waits with the bulk")
		}
		close(p.rb.hold)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		pass(100 * time.Millisecond)
		if len(p.rb.flows) != flows+1 || p.a.Stats().Lost != 0 || !p.a.Stats().Sent.Bulk.Done {
			t.Errorf("%d of %d flows came, %+v", len(p.rb.flows), flows+1, p.a.Stats())
		}
	})
}

func TestBackPressureEnds(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(p *pair, stop context.CancelFunc)
		want error
	}{
		{"with the caller", func(_ *pair, stop context.CancelFunc) { stop() }, context.Canceled},
		{"with the session", func(p *pair, _ context.CancelFunc) { p.stop() }, ErrClosed},
		{"with the queue", func(p *pair, _ context.CancelFunc) { putMany(p.a, 50000, 80000) }, ErrLost},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPair(t, func(a, _ *Config) { a.QueueLimit = 20000 })
			p.rb.hold = make(chan struct{})
			p.a.SetState(ours)
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			p.a.BeginBulk(nil, 0)
			done := make(chan error, 1)
			go func() {
				for n := 0; ; n++ {
					f := udpFlow(n)
					if err := p.a.PutBulk(ctx, &f); err != nil {
						done <- err
						return
					}
				}
			}()
			pass(time.Second)
			c.end(p, stop)
			if err := <-done; !errors.Is(err, c.want) {
				t.Errorf("%s: %v", c.name, err)
			}
			close(p.rb.hold)
			p.end()
		})
	}
}

// When the queue runs over, the engine is told, and the peer never hears the end of
// a bulk of which a part was dropped.
func TestOverflow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, func(a, _ *Config) { a.QueueLimit = 20000 })
		defer p.end()
		p.rb.hold = make(chan struct{})
		p.a.SetState(ours)
		p.a.BeginBulk([]string{"Core"}, 0)
		for n := range 1000 {
			f := udpFlow(n)
			if err := p.a.PutBulk(t.Context(), &f); err != nil {
				t.Fatal(err)
			}
		}
		pass(10 * time.Millisecond)
		putMany(p.a, 0, 20100)
		p.a.EndBulk()
		synctest.Wait()
		s := p.a.Stats()
		if p.ra.losses != 1 || s.Lost != 1 || s.Dropped == 0 || s.Lag > window*batchFlows+100 {
			t.Errorf("%d losses, %+v", p.ra.losses, s)
		}
		f := udpFlow(15000)
		if err := p.a.PutBulk(t.Context(), &f); !errors.Is(err, ErrLost) || p.a.Pending(f.FlowKey) {
			t.Errorf("the lost bulk goes on: %v", err)
		}
		close(p.rb.hold)
		pass(10 * time.Millisecond)
		p.a.BeginBulk([]string{"Core"}, 0)
		p.a.EndBulk()
		pass(10 * time.Millisecond)
		if want := []string{"begin Core", "begin Core", "end Core 0"}; !slices.Equal(p.rb.bulks, want) {
			t.Errorf("%q, want %q", p.rb.bulks, want)
		}
	})
}

// What happens during a bulk waits for two small batches of it at most, where
// somebody waits for the acknowledgement.
func TestNewsDuringABulk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		defer p.end()
		const flows = bulkRoom / 2 // PutBulk waits for nobody
		p.rb.hold = make(chan struct{})
		p.a.SetState(ours)
		p.a.SetPrompt(true)
		p.a.BeginBulk([]string{"Core"}, 0)
		for n := range flows {
			f := udpFlow(n)
			if err := p.a.PutBulk(t.Context(), &f); err != nil {
				t.Fatal(err)
			}
		}
		pass(time.Second)
		news := udpFlow(flows)
		p.a.Put(&news)
		p.a.EndBulk()
		close(p.rb.hold)
		pass(time.Second)
		place := slices.Index(p.rb.heard, news.FlowKey)
		if place < 0 || place > promptWindow*promptBatch || len(p.rb.heard) != flows+1 {
			t.Errorf("heard as %d of %d", place, len(p.rb.heard))
		}
		if diff := cmp.Diff([]string{"begin Core", "end Core 8"}, p.rb.bulks); diff != "" {
			t.Error(diff)
		}
	})
}
