// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vippin/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// router is a Handler that writes down what it hears.
type router struct {
	mu     sync.Mutex
	hello  Hello
	state  State
	flows  map[policy.FlowKey]policy.Flow
	heard  []policy.FlowKey // in order, one entry a telling
	gones  []Gone
	expect []policy.Expectation
	bulks  []string // "begin …", "end …", "wanted …"
	refuse map[policy.FlowKey]Reason
	nos    map[policy.FlowKey]Reason // refused by the peer
	losses int
	hold   chan struct{} // if not nil, a batch waits for it
	news   chan struct{} // something was heard
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
func (r *router) Refused(keys []policy.FlowKey, reasons []Reason) {
	r.note(func() {
		for i, key := range keys {
			r.nos[key] = reasons[i]
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

func at(addr string, port int) policy.End {
	return policy.MakeEnd(netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(port)))
}

// udpFlow is the nth pinned flow of inside hosts.
func udpFlow(n int) policy.Flow {
	f := policy.Flow{
		FlowKey: policy.FlowKey{Src: at("198.18.0.1", 1024+n%60000), Dst: at("203.0.113.80", 53), Proto: ipUDP},
		Group:   "Core",
		Pin:     pinName,
		Timeout: 30 * time.Second,
	}
	binary.BigEndian.PutUint16(f.Src.Addr[14:], uint16(1+n/60000))
	f.From, f.To = f.Dst, policy.MakeEnd(netip.AddrPortFrom(vip, f.Src.Port))
	return f
}

// pair runs two sessions with each other until the test ends.
type pair struct {
	a, b         *Session
	ra, rb       *router
	errA, errB   error
	stop         context.CancelFunc
	done         sync.WaitGroup
	connA, connB net.Conn
}

func newPair(t testing.TB, change func(a, b *Config), wrap func(net.Conn) io.ReadWriteCloser) *pair {
	p := &pair{ra: newRouter(), rb: newRouter()}
	a := Config{Node: "router-a", Build: "test", Boot: [16]byte{1}, Handler: p.ra}
	b := Config{Node: "router-b", Build: "test", Boot: [16]byte{2}, Handler: p.rb}
	if change != nil {
		change(&a, &b)
	}
	p.a, p.b = NewSession(a), NewSession(b)
	p.connA, p.connB = net.Pipe()
	ctx, stop := context.WithCancel(t.Context())
	p.stop = stop
	end := io.ReadWriteCloser(p.connA)
	if wrap != nil {
		end = wrap(p.connA)
	}
	p.done.Go(func() { p.errA = p.a.Run(ctx, end) })
	p.done.Go(func() { p.errB = p.b.Run(ctx, p.connB) })
	t.Cleanup(func() {
		stop()
		p.done.Wait()
	})
	return p
}

func TestFlowsReachThePeer(t *testing.T) {
	p := newPair(t, nil, nil)
	p.a.SetState(ours)
	for n := range 2000 {
		f := udpFlow(n)
		p.a.Put(&f)
	}
	p.rb.until(t, "2000 flows", func() bool { return len(p.rb.flows) == 2000 })
	f := udpFlow(77)
	if got := p.rb.flows[f.FlowKey]; got != f {
		t.Errorf("got %+v\nwant %+v", got, f)
	}
}
