// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"vippin/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// router is a Handler that writes down what it hears.
type router struct {
	mu      sync.Mutex
	hello   Hello
	state   State
	flows   map[policy.FlowKey]policy.Flow
	heard   []policy.FlowKey // in order, one entry a telling
	gones   []Gone
	expect  []policy.Expectation
	bulks   []string // "begin …", "end …", "wanted …"
	refuse  map[policy.FlowKey]Reason
	nos     map[policy.FlowKey]Reason // refused by the peer
	losses  int
	acked   []policy.Flow // taken by the peer
	digests [][]byte
	hold    chan struct{} // if not nil, a batch waits for it
	news    chan struct{} // something was heard
}

func newRouter() *router {
	return &router{
		flows:  map[policy.FlowKey]policy.Flow{},
		refuse: map[policy.FlowKey]Reason{},
		nos:    map[policy.FlowKey]Reason{},
		news:   make(chan struct{}, 1),
	}
}

func (r *router) note(f func()) {
	r.mu.Lock()
	f()
	r.mu.Unlock()
	poke(r.news)
}

func (r *router) Hello(h Hello) { r.note(func() { r.hello = h }) }
func (r *router) State(s State) { r.note(func() { r.state = s }) }
func (r *router) Lost()         { r.note(func() { r.losses++ }) }

func (r *router) Acked(flows []policy.Flow) { r.note(func() { r.acked = append(r.acked, flows...) }) }
func (r *router) Digest(digest []byte)      { r.note(func() { r.digests = append(r.digests, digest) }) }

func (r *router) Batch(b *Batch) (refusals []Refusal) {
	if r.hold != nil {
		<-r.hold
	}
	r.note(func() {
		for _, g := range b.Gones {
			delete(r.flows, g.Key)
			r.gones = append(r.gones, g)
		}
		for i, f := range b.Flows {
			if why, no := r.refuse[f.FlowKey]; no {
				refusals = append(refusals, Refusal{i, why})
				continue
			}
			r.flows[f.FlowKey] = f
			r.heard = append(r.heard, f.FlowKey)
		}
		r.expect = append(r.expect, b.Expectations...)
	})
	return refusals
}

func (r *router) BulkBegin(groups []string) {
	r.note(func() { r.bulks = append(r.bulks, "begin "+join(groups)) })
}
func (r *router) BulkEnd(groups []string, count uint64) {
	r.note(func() { r.bulks = append(r.bulks, "end "+join(groups)+" "+string(rune('0'+count%10))) })
}
func (r *router) BulkWanted(groups []string) {
	r.note(func() { r.bulks = append(r.bulks, "wanted "+join(groups)) })
}
func (r *router) Refused(flows []policy.Flow, reasons []Reason) {
	r.note(func() {
		for i := range flows {
			r.nos[flows[i].FlowKey] = reasons[i]
		}
	})
}

func join(names []string) (all string) {
	for i, name := range names {
		if i > 0 {
			all += ","
		}
		all += name
	}
	return all
}

// until waits for something to become true of what was heard.
func (r *router) until(t *testing.T, what string, true func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		r.mu.Lock()
		ok := true()
		r.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-r.news:
		case <-deadline:
			t.Fatalf("never: %s", what)
		}
	}
}

var (
	vip     = netip.MustParseAddr("198.51.100.2")
	pinName = policy.PinName{VLAN: policy.VLAN{Outer: 2}, VIP: vip}
	ours    = State{
		Groups: []GroupState{{"Core", policy.RoleMaster, 7}, {"Edge", policy.RoleBackup, 3}},
		Pins:   []PinState{{pinName, "Core"}},
	}
)

// udpFlow is the nth pinned flow of inside hosts.
func udpFlow(n int) policy.Flow {
	f := policy.Flow{
		FlowKey: policy.FlowKey{Src: end("198.18.0.1:1"), Dst: end("203.0.113.80:53"), Proto: ipUDP},
		Group:   "Core",
		Pin:     pinName,
		Timeout: 30 * time.Second,
	}
	f.Src.Port = uint16(1024 + n%60000)
	binary.BigEndian.PutUint16(f.Src.Addr[14:], uint16(1+n/60000))
	f.From, f.To = f.Dst, policy.MakeEnd(netip.AddrPortFrom(vip, f.Src.Port))
	return f
}

// pair is two sessions that run with each other until the test ends.
type pair struct {
	t          testing.TB
	a, b       *Session
	ra, rb     *router
	errA, errB error
	stop       context.CancelFunc
	done       sync.WaitGroup
}

// newPair changes the configurations first.
func newPair(t testing.TB, change func(a, b *Config)) *pair {
	p := &pair{t: t, ra: newRouter(), rb: newRouter()}
	a := Config{Node: "router-a", Build: "test", Boot: [16]byte{1}, Handler: p.ra}
	b := Config{Node: "router-b", Build: "test", Boot: [16]byte{2}, Handler: p.rb}
	if change != nil {
		change(&a, &b)
	}
	p.a, p.b = NewSession(a), NewSession(b)
	connA, connB := net.Pipe()
	var ctx context.Context
	ctx, p.stop = context.WithCancel(context.Background())
	p.done.Go(func() { p.errA = p.a.Run(ctx, connA) })
	p.done.Go(func() { p.errB = p.b.Run(ctx, connB) })
	return p
}

// end stops both sessions, which must not have ended before.
func (p *pair) end() {
	p.stop()
	p.done.Wait()
	for _, err := range []error{p.errA, p.errB} {
		if !errors.Is(err, context.Canceled) {
			p.t.Errorf("a session ended by itself: %v", err)
		}
	}
}

func putMany(s *Session, from, to int) {
	for n := from; n < to; n++ {
		f := udpFlow(n)
		s.Put(&f)
	}
}

func TestFlowsReachThePeer(t *testing.T) {
	p := newPair(t, nil)
	defer p.end()
	p.a.SetState(ours)
	putMany(p.a, 0, 2000)
	first, second := udpFlow(0), udpFlow(1)
	expected := policy.Expectation{Master: second.FlowKey, Dst: end("198.51.100.2:4000"), Proto: ipTCP, AnySrc: true, Helper: "ftp"}
	p.a.Expect(&expected)
	p.rb.until(t, "2000 flows", func() bool { return len(p.rb.flows) == 2000 })
	p.a.Gone(Gone{first.FlowKey, first.To})
	p.rb.until(t, "an end", func() bool { return len(p.rb.flows) == 1999 && len(p.rb.expect) == 1 })
	if got := p.rb.flows[second.FlowKey]; got != second {
		t.Errorf("got %+v\nwant %+v", got, second)
	}
	if p.rb.expect[0] != expected || p.rb.gones[0] != (Gone{first.FlowKey, first.To}) {
		t.Errorf("got %+v, %+v", p.rb.expect, p.rb.gones)
	}
	if diff := cmp.Diff(ours, p.rb.state, equal); diff != "" || p.rb.hello.Node != "router-a" || p.rb.hello.Boot[0] != 1 {
		t.Errorf("state: %s, hello %+v", diff, p.rb.hello)
	}
}

// Nothing is pending once the peer has acknowledged it, and the figures agree.
func TestAcknowledgements(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		defer p.end()
		p.rb.hold = make(chan struct{})
		p.a.SetState(ours)
		refused, taken := udpFlow(3), udpFlow(4)
		p.rb.refuse[refused.FlowKey] = ReasonClash
		putMany(p.a, 0, 10)
		pass(100 * time.Millisecond)
		if s := p.a.Stats(); !p.a.Pending(refused.FlowKey) || s.Lag != 10 || s.Age != 100*time.Millisecond || s.Acknowledged != 0 {
			t.Errorf("before the peer has taken them: %+v", s)
		}
		close(p.rb.hold)
		pass(10 * time.Millisecond)
		a, b := p.a.Stats(), p.b.Stats()
		if p.a.Pending(refused.FlowKey) || p.a.Pending(taken.FlowKey) || a.Lag != 0 || a.Age != 0 {
			t.Errorf("after: %+v", a)
		}
		if a.Acknowledged != 10 || a.Sent.Flows != 10 || b.Received.Flows != 10 || a.Sent.Batches != b.Received.Batches {
			t.Errorf("sent %+v, received %+v", a, b)
		}
		if a.Sent.Bytes != b.Received.Bytes || a.Sent.Bytes == 0 || a.Received.Bytes != b.Sent.Bytes {
			t.Errorf("octets of a %+v, of b %+v", a, b)
		}
		want := map[policy.FlowKey]Reason{refused.FlowKey: ReasonClash}
		if !maps.Equal(p.ra.nos, want) || a.Sent.Refused[ReasonClash] != 1 || b.Received.Refused[ReasonClash] != 1 {
			t.Errorf("refused: %v, %+v, %+v", p.ra.nos, a, b)
		}
		if a.Version != 1 || a.Peer.Node != "router-b" {
			t.Errorf("peer: %+v", a)
		}
	})
}

// While the peer is busy what is put of a flow comes down to the latest.
func TestCoalescing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		defer p.end()
		p.rb.hold = make(chan struct{})
		p.a.SetState(ours)
		f, other := udpFlow(1), udpFlow(2)
		for n := range 1000 {
			f.Mark = uint32(n)
			p.a.Put(&f)
			p.a.Put(&other)
			p.a.Gone(Gone{other.FlowKey, other.To})
			if n%100 == 0 {
				pass(2 * time.Millisecond)
			}
		}
		close(p.rb.hold)
		pass(10 * time.Millisecond)
		if n := len(p.rb.heard); n > 2*window || n == 0 {
			t.Errorf("1000 changes are %d tellings", n)
		}
		if got := p.rb.flows[f.FlowKey]; got.Mark != 999 {
			t.Errorf("the latest is %d", got.Mark)
		}
		if _, ok := p.rb.flows[other.FlowKey]; ok || len(p.rb.gones) > window+1 {
			t.Errorf("the ended flow lives: %v, %d ends", ok, len(p.rb.gones))
		}
	})
}

// An idle session tells at once, one with a flow now and then as well, a busy one
// once in ten milliseconds.
func TestGathering(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		defer p.end()
		p.a.SetState(ours)
		pass(100 * time.Millisecond)
		putMany(p.a, 0, 1)
		synctest.Wait()
		if len(p.rb.flows) != 1 {
			t.Error("an idle session waits")
		}
		late := 0
		for n := range 100 {
			putMany(p.a, n, n+1)
			pass(time.Millisecond)
			if len(p.rb.flows) <= n {
				late++
			}
		}
		if late > 0 {
			t.Errorf("of 1,000 flows a second %d waited longer than a millisecond", late)
		}
		before := p.a.Stats().Sent.Batches
		for n := range 100 {
			putMany(p.a, 20*n, 20*(n+1))
			pass(time.Millisecond)
		}
		if n := p.a.Stats().Sent.Batches - before; n < 8 || n > 18 {
			t.Errorf("%d batches in 100 ms of 20,000 flows a second", n)
		}
	})
}

func TestStateIsTheSignOfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, func(a, _ *Config) { a.Beat = time.Second; a.QueueLimit = 10 })
		defer p.end()
		pass(time.Hour + 100*time.Millisecond) // not at a beat
		p.a.SetState(ours)
		synctest.Wait()
		if diff := cmp.Diff(ours, p.rb.state, equal); diff != "" {
			t.Errorf("not told at once: %s", diff)
		}
	})
}

func TestRunEnds(t *testing.T) {
	p := newPair(t, nil)
	p.ra.until(t, "hello", func() bool { return p.ra.hello.Node != "" })
	p.end()
	f := udpFlow(1)
	p.a.Put(&f)
	p.a.BeginBulk(nil, 0)
	if err := p.a.PutBulk(t.Context(), &f); !errors.Is(err, ErrClosed) || p.a.Pending(f.FlowKey) || p.a.Stats().Lag != 0 {
		t.Errorf("after the end: %v, %+v", err, p.a.Stats())
	}
}

// What makes no sense, or what State does not name, would end the session: it stays
// here and is counted.
func TestOwnMistakesStayHere(t *testing.T) {
	p := newPair(t, nil)
	defer p.end()
	p.a.SetState(ours)
	bad, unnamed, good := udpFlow(1), udpFlow(2), udpFlow(3)
	bad.Src.Addr = end("[2001:db8::1]:1").Addr
	unnamed.Group = "Attic"
	p.a.Put(&bad)
	p.a.Put(&unnamed)
	p.a.Gone(Gone{bad.FlowKey, bad.To})
	p.a.Expect(&policy.Expectation{})
	p.a.Put(&good)
	p.rb.until(t, "the good flow", func() bool { return len(p.rb.flows) == 1 })
	if s := p.a.Stats(); s.Invalid != 3 || s.Unnamed != 1 || p.a.Pending(unnamed.FlowKey) {
		t.Errorf("%+v", s)
	}
}

// pass lets time go by in a synctest bubble, and what comes with it happen.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}
