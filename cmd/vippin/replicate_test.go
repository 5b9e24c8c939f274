// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vippin/loader"
	"vippin/policy"
	"vippin/policy/natsync"
)

const core = "RouterCore"

var corePin = policy.PinName{VLAN: policy.VLAN{Outer: 2}, VIP: netip.MustParseAddr("198.51.100.2")}

// tableFlow is the flow of one port of an inside host.
func tableFlow(port uint16) policy.Flow {
	remote := policy.MakeEnd(netip.MustParseAddrPort("203.0.113.9:443"))
	return policy.Flow{
		FlowKey: policy.FlowKey{Src: policy.MakeEnd(netip.AddrPortFrom(netip.MustParseAddr("192.168.101.7"), port)), Dst: remote, Proto: 17},
		From:    remote, To: policy.MakeEnd(netip.AddrPortFrom(corePin.VIP, port)),
		Group: core, Pin: corePin, Bits: policy.FlowSeenReply, Timeout: time.Minute,
	}
}

// fakeTable is a kernel that has what it is told.
type fakeTable struct {
	mu          sync.Mutex
	flows       map[policy.FlowKey]policy.Flow
	active      bool
	restored    int
	removed     int
	refreshed   int
	normal      int
	loosened    map[string]int
	inFlowtable map[policy.FlowKey]bool // whose timeouts are lost when they leave
	looks       int                     // at the flow table
	rehearsed   []loader.Rehearsing
	full        bool
	prompt      bool
	gates       chan *fakeGate // those that were opened
	noGate      error
	stall       chan struct{} // installing waits for it, if there is one
	linger      time.Duration // how long a dump takes once it has read the table
	blind       int           // so many dumps find nothing
	events      chan loader.FlowEvent
}

func newFakeTable() *fakeTable {
	return &fakeTable{
		flows: make(map[policy.FlowKey]policy.Flow), events: make(chan loader.FlowEvent), loosened: make(map[string]int),
		gates: make(chan *fakeGate, 16),
	}
}

func (f *fakeTable) SetOptions(policy.SyncConfig)         {}
func (f *fakeTable) SetPlan(policy.Plan, policy.Observed) {}
func (f *fakeTable) Close() error                         { return nil }
func (f *fakeTable) Skipped() map[string]uint64           { return nil }

func (f *fakeTable) SetActive(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.active = on
}

func (f *fakeTable) Follow(ctx context.Context, handle func(*loader.FlowEvent) error) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case event := <-f.events:
			if err := handle(&event); err != nil {
				return err
			}
		}
	}
}

func (f *fakeTable) Dump(ctx context.Context, yield func(*policy.Flow) error) error {
	f.mu.Lock()
	flows, linger := slices.Collect(maps.Values(f.flows)), f.linger
	if f.blind > 0 {
		f.blind--
		flows = nil
	}
	f.mu.Unlock()
	time.Sleep(linger)
	for i := range flows {
		if err := yield(&flows[i]); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (f *fakeTable) Expectations(context.Context, func(*policy.Expectation) error) error { return nil }
func (f *fakeTable) InstallExpectation(*policy.Expectation) error                        { return nil }

func (f *fakeTable) Install(list []loader.Installation) ([]loader.Outcome, error) {
	f.mu.Lock()
	stall := f.stall
	f.mu.Unlock()
	if stall != nil {
		<-stall
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var outcomes []loader.Outcome
	for _, what := range list {
		there, known := f.flows[what.Flow.FlowKey]
		switch {
		case f.full:
			outcomes = append(outcomes, loader.RefusedFull)
			continue
		case known && there.To != what.Flow.To && !what.Replace:
			outcomes = append(outcomes, loader.RefusedClash)
			continue
		}
		f.flows[what.Flow.FlowKey] = *what.Flow
		outcomes = append(outcomes, loader.Installed)
	}
	return outcomes, nil
}

func (f *fakeTable) Restore(flows []policy.Flow) ([]loader.Outcome, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.restored += len(flows)
	for _, flow := range flows {
		f.flows[flow.FlowKey] = flow
	}
	return slices.Repeat([]loader.Outcome{loader.Installed}, len(flows)), nil
}

func (f *fakeTable) Remove(list []loader.Removal) ([]bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, what := range list {
		delete(f.flows, what.Key)
		f.removed++
	}
	return make([]bool, len(list)), nil
}

func (f *fakeTable) Refresh(keys []policy.FlowKey, missing func(i int)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, key := range keys {
		if _, there := f.flows[key]; !there {
			missing(i)
			continue
		}
		f.refreshed++
	}
	return nil
}

func (f *fakeTable) Normalise(_ context.Context, wanted func(*policy.FlowKey) bool) (n int, err error) {
	f.mu.Lock()
	keys := slices.Collect(maps.Keys(f.flows))
	f.mu.Unlock()
	for i := range keys {
		if wanted(&keys[i]) {
			n++
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.normal += n
	return n, nil
}

func (f *fakeTable) Loosen(_ context.Context, wanted func(string) bool) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if wanted(core) {
		f.loosened[core]++
	}
	return 0, nil
}

func (f *fakeTable) InFlowtable(_ context.Context, wanted func(string) bool) ([]policy.FlowKey, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looks++
	if !wanted(core) {
		return nil, nil
	}
	return slices.Collect(maps.Keys(f.inFlowtable)), nil
}

func (f *fakeTable) put(flow *policy.Flow) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.flows[flow.FlowKey] = *flow
}

func (f *fakeTable) get(key policy.FlowKey) policy.Flow {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.flows[key]
}

func (f *fakeTable) ports() (ports []uint16) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key := range f.flows {
		ports = append(ports, key.Src.Port)
	}
	slices.Sort(ports)
	return ports
}

// station is one router of a replicating pair.
type station struct {
	t      *testing.T
	name   string
	kernel *fakeTable
	flows  *replicator

	mu     sync.Mutex
	events []string
}

// told is what who watches has heard.
func (s *station) told() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.events)
}

// couple is two routers with kernels that are fakes, and a wire between them.
// Within a synctest bubble its time passes at once.
type couple struct {
	t      *testing.T
	a, b   *station
	cancel context.CancelFunc
	ctx    context.Context
	tasks  sync.WaitGroup
	cut    func()
}

func newCouple(t *testing.T) *couple {
	ctx, cancel := context.WithCancel(t.Context())
	c := &couple{t: t, ctx: ctx, cancel: cancel}
	c.a, c.b = c.station("a"), c.station("b")
	return c
}

func (c *couple) station(name string) *station {
	config := policy.DefaultConfig(name, "")
	config.Sync.StandbyTimeout = time.Hour
	config.Sync.Peers = []policy.PeerConfig{{Name: "the other one"}}
	began := time.Now()
	e := &env{now: time.Now, monotonic: func() time.Duration { return time.Since(began) + time.Hour }}
	s := &station{t: c.t, name: name, kernel: newFakeTable()}
	identity := natsync.Config{Node: name, Build: "test", Now: e.monotonic}
	s.flows = newReplicator(e, slog.New(slog.DiscardHandler), s.kernel, identity, "key-"+name, config)
	s.flows.publish = func(event policy.Event) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.events = append(s.events, event.Detail)
	}
	s.flows.SetPlan(policy.Plan{
		Groups: []policy.PlanGroup{{ID: 1, Name: core}},
		Pins:   []policy.PlanPin{{ID: 1, Group: 1, VLAN: corePin.VLAN, VIP4: corePin.VIP}},
	}, policy.Observed{})
	s.flows.SetRole(core, policy.RoleBackup)
	c.tasks.Go(func() {
		if err := s.flows.Run(c.ctx); err != nil {
			c.t.Error(err)
		}
	})
	return s
}

// join connects the two; cut ends that.
func (c *couple) join() {
	ctx, cancel := context.WithCancel(c.ctx)
	x, y := net.Pipe()
	var served sync.WaitGroup
	serve := func(s, peer *station, conn net.Conn) {
		served.Go(func() {
			_ = s.flows.Serve(ctx, peer.name, "key-"+peer.name, conn)
		})
	}
	serve(c.a, c.b, x)
	serve(c.b, c.a, y)
	c.cut = func() { cancel(); served.Wait() }
	c.settle()
}

// settle lets everything be told that is to be told, but for held ends.
func (c *couple) settle() {
	time.Sleep(2 * time.Second)
	synctest.Wait()
}

func (c *couple) close() {
	if c.cut != nil {
		c.cut()
	}
	c.cancel()
	c.tasks.Wait()
}

// begin has flows pass through a router.
func (s *station) begin(ports ...uint16) {
	for _, port := range ports {
		flow := tableFlow(port)
		s.pass(&flow)
	}
}

func (s *station) pass(flow *policy.Flow) {
	s.kernel.put(flow)
	s.kernel.events <- loader.FlowEvent{Kind: loader.FlowSeen, Flow: flow, At: s.flows.monotonic()}
}

// end has the kernel remove flows.
func (s *station) end(ports ...uint16) {
	for _, port := range ports {
		flow := tableFlow(port)
		s.kernel.mu.Lock()
		delete(s.kernel.flows, flow.FlowKey)
		s.kernel.mu.Unlock()
		s.kernel.events <- loader.FlowEvent{Kind: loader.FlowGone, Flow: &flow, Ifindex: 3, At: s.flows.monotonic()}
	}
}

// clashes counts the flows that a peer refused for another flow's sake.
func (s *station) clashes(peer string) uint64 {
	return s.flows.Report(policy.PeerConfig{Name: peer}, linkStatus{}).RefusedByPeer["clash"]
}

func (s *station) wants(ports ...uint16) {
	s.t.Helper()
	if got := s.kernel.ports(); !slices.Equal(got, ports) {
		s.t.Errorf("%s has %v, want %v", s.name, got, ports)
	}
}

// inCouple runs a test of two routers, a being MASTER and the wire up.
func inCouple(t *testing.T, test func(t *testing.T, c *couple)) {
	synctest.Test(t, func(t *testing.T) {
		c := newCouple(t)
		defer c.close()
		c.a.flows.SetRole(core, policy.RoleMaster)
		c.join()
		test(t, c)
	})
}

func TestReplicateFlowsAndTheirEnds(t *testing.T) {
	inCouple(t, func(t *testing.T, c *couple) {
		c.a.begin(1, 2, 3)
		c.settle()
		c.b.wants(1, 2, 3)
		c.a.end(2)
		c.a.end(3)
		c.settle()
		c.b.wants(1, 2, 3)
		c.a.begin(3) // it is there again
		time.Sleep(2 * time.Second)
		c.settle()
		c.b.wants(1, 3)
		if origin, acked := c.a.flows.Standing(tableFlow(1).FlowKey); origin != originLocal || !acked {
			t.Errorf("at a: %s, acked %v", origin, acked)
		}
		if origin, acked := c.b.flows.Standing(tableFlow(1).FlowKey); origin != "a" || !acked {
			t.Errorf("at b: %s, acked %v", origin, acked)
		}
	})
}

func TestReplicateNothingOfABackup(t *testing.T) {
	inCouple(t, func(t *testing.T, c *couple) {
		if c.b.kernel.active || !c.a.kernel.active {
			t.Error("the MASTER listens for new flows, the BACKUP does not")
		}
		c.b.begin(7)
		c.a.begin(1)
		c.settle()
		c.a.wants(1)
		c.b.end(1) // its own copy, by a slip of somebody
		c.settle()
		c.a.wants(1)
		time.Sleep(missingEvery)
		c.settle()
		c.b.wants(1, 7) // it asked again
	})
}

// A flush is no end: the flows are back, and the peer hears nothing.
func TestReplicateNoFlush(t *testing.T) {
	inCouple(t, func(t *testing.T, c *couple) {
		c.a.begin(1, 2, 3)
		c.settle()
		c.a.end(1)
		c.a.flows.Shaken(3)
		c.a.end(2)
		c.settle()
		c.a.wants(1, 2, 3)
		time.Sleep(time.Second) // a flush does not last as long
		c.a.flows.Shaken(4)     // another interface
		c.a.end(3)
		time.Sleep(5 * time.Second)
		c.settle()
		c.a.wants(1, 2)
		c.b.wants(1, 2)
		if status := c.a.flows.Status(); status.Restored != 2 || status.NotRestored != 0 {
			t.Errorf("shown: %+v", status)
		}
		if c.a.kernel.restored != 2 {
			t.Errorf("%d flows were put back", c.a.kernel.restored)
		}
	})
}

// A flow that gets the public end of one that has just ended is no clash: that the
// other one has ended is told at once then, before it.
func TestReplicateReusedEnds(t *testing.T) {
	inCouple(t, func(t *testing.T, c *couple) {
		c.a.begin(1, 2)
		c.settle()
		c.a.end(1, 2)
		heir := tableFlow(7)
		heir.To = tableFlow(1).To
		c.a.pass(&heir)
		time.Sleep(time.Second) // less than sync.delete_hold
		c.b.wants(2, 7)
		if n := c.a.clashes("b"); n != 0 {
			t.Errorf("%d clashes", n)
		}
	})
}

func TestReplicateTakeover(t *testing.T) {
	inCouple(t, func(t *testing.T, c *couple) {
		c.a.begin(1, 2, 3)
		c.settle()
		before := c.a.kernel.loosened[core]
		c.a.end(1) // the dying master's kernel
		c.b.flows.SetRole(core, policy.RoleMaster)
		time.Sleep(5 * time.Second)
		c.settle()
		c.b.wants(1, 2, 3)
		if c.b.kernel.normal != 3 {
			t.Errorf("%d timeouts were normalised", c.b.kernel.normal)
		}
		c.a.flows.SetRole(core, policy.RoleBackup)
		c.settle()
		c.a.wants(1, 2, 3)                                                 // b has told it
		if loosened := c.a.kernel.loosened[core] - before; loosened != 2 { // while both were MASTER, and now
			t.Errorf("a loosened its windows %d times", loosened)
		}
		c.b.begin(4)
		c.b.end(2)
		time.Sleep(5 * time.Second)
		c.settle()
		c.a.wants(1, 3, 4)
		c.b.wants(1, 3, 4)
	})
}

func TestReplicateReconnect(t *testing.T) {
	inCouple(t, func(t *testing.T, c *couple) {
		c.a.begin(1, 2, 3)
		c.settle()
		c.cut()
		if events := c.b.told(); !slices.Equal(events, []string{"a is connected (node a, test)", "a is not connected any more"}) {
			t.Errorf("who watches hears %q", events)
		}
		if master := c.b.flows.authority.MasterOf(core); master != "" {
			t.Errorf("b believes %s, which it cannot hear", master)
		}
		strange := tableFlow(9)
		strange.Group = "another"
		c.a.kernel.put(&strange) // a is not MASTER of it
		c.a.end(1)
		c.a.begin(4)
		time.Sleep(5 * time.Second)
		c.b.wants(1, 2, 3)
		c.join()
		c.a.wants(2, 3, 4, 9)
		c.b.wants(2, 3, 4)
	})
}

// What ends at the new MASTER while the old one still takes itself for it is
// swept there later, though no peer ever told of it.
func TestReplicateSweepsWhatWasBornHere(t *testing.T) {
	inCouple(t, func(t *testing.T, c *couple) {
		c.a.begin(1, 2)
		c.settle()
		c.b.flows.SetRole(core, policy.RoleMaster)
		c.b.end(2)
		time.Sleep(5 * time.Second)
		c.settle()
		c.a.wants(1, 2) // a MASTER takes nobody's word
		c.a.flows.SetRole(core, policy.RoleBackup)
		c.settle()
		c.a.wants(1)
		c.b.wants(1)
	})
}

// A flow of no group belongs to the router that it passes.
func TestReplicateFlowsOfNoGroup(t *testing.T) {
	inCouple(t, func(t *testing.T, c *couple) {
		flow := tableFlow(1)
		flow.Group, flow.Pin = "", policy.PinName{}
		c.a.pass(&flow)
		c.settle()
		c.b.wants(1)
		c.b.flows.SetRole(core, policy.RoleMaster)
		c.b.pass(&flow)
		c.a.kernel.events <- loader.FlowEvent{Kind: loader.FlowGone, Flow: &flow, At: c.a.flows.monotonic()}
		time.Sleep(5 * time.Second)
		c.settle()
		c.b.wants(1)
	})
}

// Both are MASTER for a while, without hearing of each other.
func TestReplicateSplitBrain(t *testing.T) {
	inCouple(t, func(t *testing.T, c *couple) {
		c.a.begin(1, 2)
		c.settle()
		c.cut()
		c.b.flows.SetRole(core, policy.RoleMaster)
		c.b.begin(3)
		moved := tableFlow(2)
		moved.To.Port += 1000
		c.b.kernel.put(&moved)
		c.a.begin(4)
		time.Sleep(time.Minute)
		c.join()
		c.a.wants(1, 2, 3, 4)
		c.b.wants(1, 2, 3, 4)
		clashes := c.a.clashes("b")
		c.b.flows.SetRole(core, policy.RoleBackup)
		c.settle()
		c.a.wants(1, 2, 3, 4)
		c.b.wants(1, 2, 3, 4)
		if now := c.a.clashes("b"); now != clashes {
			t.Errorf("b refused %d flows of its MASTER", now-clashes)
		}
		for _, s := range []*station{c.a, c.b} {
			if to := s.kernel.get(moved.FlowKey).To.Port; to != 2 {
				t.Errorf("%s has the public port %d of a flow that the surviving MASTER knows by 2", s.name, to)
			}
		}
	})
}

// The loser of a split brain has flows that the MASTER has never heard of.
func TestReplicateOffersAfterASplitBrain(t *testing.T) {
	inCouple(t, func(t *testing.T, c *couple) {
		c.a.begin(1)
		c.settle()
		c.cut()
		c.b.flows.SetRole(core, policy.RoleMaster)
		c.b.begin(2, 3)
		c.a.begin(4)
		c.b.flows.SetRole(core, policy.RoleBackup)
		c.join()
		c.settle()
		c.a.wants(1, 2, 3, 4)
		c.b.wants(1, 2, 3, 4)
		if c.a.kernel.normal == 0 {
			t.Error("the MASTER holds flows for an hour that may have ended")
		}
		if c.b.kernel.removed != 0 {
			t.Errorf("b removed %d flows before it had offered them", c.b.kernel.removed)
		}
		// What ends now ends everywhere: the offer is made once.
		c.cut()
		c.a.end(2)
		time.Sleep(5 * time.Second)
		c.join()
		c.settle()
		c.a.wants(1, 3, 4)
		c.b.wants(1, 3, 4)
	})
}

// The loser of a split brain told its flows as a MASTER, and lost that role before the
// winner had taken them: the winner's table, read before, does not have them yet.
func TestReplicateSplitBrainOfSlowRouters(t *testing.T) {
	inCouple(t, func(t *testing.T, c *couple) {
		c.a.begin(1)
		c.settle()
		c.cut()
		c.b.flows.SetRole(core, policy.RoleMaster)
		c.b.begin(2, 3)
		stall := make(chan struct{})
		c.a.kernel.stall, c.a.kernel.linger = stall, 2500*time.Millisecond
		c.join()
		c.b.flows.SetRole(core, policy.RoleBackup)
		time.Sleep(200 * time.Millisecond)
		close(stall) // before a's bulk ends, which was read without them
		time.Sleep(10 * time.Second)
		c.a.wants(1, 2, 3)
		c.b.wants(1, 2, 3)
		if c.b.kernel.removed != 0 {
			t.Errorf("b removed %d flows that were on their way to a", c.b.kernel.removed)
		}
	})
}

// What was removed by a MASTER's word is asked about once more.
func TestReplicateRemovedInError(t *testing.T) {
	inCouple(t, func(t *testing.T, c *couple) {
		c.a.begin(1, 2)
		c.settle()
		c.cut()
		c.a.kernel.blind = 1
		c.join()
		time.Sleep(2 * missingEvery)
		c.b.wants(1, 2)
		if c.b.kernel.removed != 2 {
			t.Errorf("b removed %d flows, want both at first", c.b.kernel.removed)
		}
	})
}

func TestReplicateRefusals(t *testing.T) {
	inCouple(t, func(t *testing.T, c *couple) {
		c.b.kernel.full = true
		c.a.begin(1)
		c.settle()
		report := c.a.flows.Report(policy.PeerConfig{Name: "b"}, linkStatus{Key: "key-b", State: "connected"})
		if report.RefusedByPeer["full"] != 1 || report.State != "up" || report.LagFlows != 0 {
			t.Errorf("%+v", report)
		}
		if _, acked := c.a.flows.Standing(tableFlow(1).FlowKey); acked {
			t.Error("a flow that was refused is acked")
		}
		if warnings := c.a.flows.Warnings(nil); len(warnings) != 1 {
			t.Errorf("warnings %q", warnings)
		}
	})
}

func TestReplicateRefreshes(t *testing.T) {
	inCouple(t, func(t *testing.T, c *couple) {
		c.a.begin(1, 2)
		c.settle()
		c.b.kernel.mu.Lock()
		delete(c.b.kernel.flows, tableFlow(2).FlowKey) // nobody noticed
		c.b.kernel.mu.Unlock()
		time.Sleep(time.Hour/3 + missingEvery)
		c.settle()
		if c.b.kernel.refreshed != 1 || c.a.kernel.refreshed != 0 {
			t.Errorf("b refreshed %d, a %d", c.b.kernel.refreshed, c.a.kernel.refreshed)
		}
		c.b.wants(1, 2)
		c.cut()
		before := c.b.kernel.refreshed
		time.Sleep(2 * time.Hour)
		if c.b.kernel.refreshed != before {
			t.Error("refreshed the flows of a peer that has gone")
		}
	})
}
