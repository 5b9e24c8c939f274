// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"vippin/bpf"
	"vippin/policy"
)

func (l *lab) resting(t *testing.T, d *Dataplane) bool {
	t.Helper()
	var hash, near ifaceValue
	err := errors.Join(d.maps.Ifaces.Lookup(uint32(l.ifindex), &hash), d.maps.NearIfaces.Lookup(uint32(l.ifindex), &near))
	if err != nil || hash != near {
		t.Fatalf("the interface is %+v here and %+v there (%v)", hash, near, err)
	}
	return hash.Resting != 0
}

func (l *lab) rest(t *testing.T, d *Dataplane, want bool) {
	t.Helper()
	if err := d.Rest(); err != nil {
		t.Fatal(err)
	}
	if got := l.resting(t, d); got != want {
		t.Fatalf("resting %v, want %v", got, want)
	}
}

func notes(t *testing.T, d *Dataplane) int {
	t.Helper()
	list, err := readMap[flowKey, leftAlone](d.maps.Unpinned)
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestRestingInterface: while an interface rests no flow is noted, and all that
// live when its pin is switched on keep their source all the same.
func TestRestingInterface(t *testing.T) {
	l := newLab(t)
	l.serve(t)
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	l.plan(t, d, false)
	l.rest(t, d, true)
	before := notes(t, d)
	tcp, udp := l.dial(t, "resting tcp", "tcp4", "192.168.1.10:41000"), l.dial(t, "resting udp", "udp4", "192.168.1.10:41001")
	mustAsk(t, tcp, udp)
	if n := notes(t, d) - before; n != 0 {
		t.Errorf("%d flows were noted", n)
	}
	counters, err := d.PinCounters()
	if err != nil || counters[1].Unpinned["off"] < 4 { // a handshake, and two questions
		t.Errorf("counters %+v, %v", counters[1], err)
	}
	l.plan(t, d, false)
	if !l.resting(t, d) {
		t.Error("a plan that changes nothing woke the interface")
	}
	// Switch, step by step.
	now, err := d.content()
	on := map[uint32]bool{1: true}
	if err := errors.Join(err, d.wake(now, on)); err != nil {
		t.Fatal(err)
	}
	if l.resting(t, d) {
		t.Error("it rests although its pin goes on")
	}
	// An earlier flow on the tuple of one that lives was noted before the rest.
	stale := newFlowKey(1, unix.IPPROTO_UDP, netip.MustParseAddrPort(unique+":41001"), netip.MustParseAddrPort("198.51.100.9:7777"))
	if err := d.maps.Unpinned.Put(stale, leftAlone{Conntrack: 0xdead, Pin: 1, Reason: bpf.DataplanePinCounterPIN_OFF}); err != nil {
		t.Fatal(err)
	}
	between := l.dial(t, "between", "udp4", "192.168.1.11:41001")
	mustAsk(t, between, tcp)
	if err := d.settle(now, on); err != nil {
		t.Fatal(err)
	}
	var renewed leftAlone
	if err := d.maps.Unpinned.Lookup(stale, &renewed); err != nil || renewed.Conntrack != 0 || renewed.Pin != 1 {
		t.Errorf("the note of an earlier flow is %+v (%v)", renewed, err)
	}
	settled := l.dial(t, "settled", "udp4", "192.168.1.10:41003")
	mustAsk(t, settled)
	if err := switchPin(d, 1, true); err != nil {
		t.Fatal(err)
	}
	after := l.dial(t, "after", "udp4", "192.168.1.11:41002")
	mustAsk(t, tcp, udp, between, settled, after)
	for name, want := range map[string]string{"resting tcp": unique, "resting udp": unique, "between": unique, "settled": unique, "after": vip} {
		if got := l.source(t, name).Addr().String(); got != want {
			t.Errorf("%s came from %s, want %s", name, got, want)
		}
	}
	if err := switchPin(d, 1, false); err != nil {
		t.Fatal(err)
	}
	l.rest(t, d, false) // a mapping lives
	mustAsk(t, after)
	if got := l.source(t, "after").Addr().String(); got != vip {
		t.Errorf("after came from %s", got)
	}
}

// TestPlanWakes: a plan with the pin on is as good as a toggle.
func TestPlanWakes(t *testing.T) {
	l := newLab(t)
	l.serve(t)
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	l.plan(t, d, false)
	l.rest(t, d, true)
	old := l.dial(t, "old", "udp4", "192.168.1.10:41001")
	mustAsk(t, old)
	l.plan(t, d, true)
	if l.resting(t, d) {
		t.Error("it rests although its pin is on")
	}
	young := l.dial(t, "young", "udp4", "192.168.1.11:41001")
	mustAsk(t, old, young)
	if a, b := l.source(t, "old").Addr().String(), l.source(t, "young").Addr().String(); a != unique || b != vip {
		t.Errorf("the old flow came from %s, the young one from %s", a, b)
	}
}

func TestMayRest(t *testing.T) {
	every4, every6 := netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")
	for name, c := range map[string]struct {
		change func(*policy.Plan)
		want   bool
	}{
		"a pin that is off":  {func(*policy.Plan) {}, true},
		"a pin that is on":   {func(p *policy.Plan) { p.Pins[0].Enabled = true }, false},
		"some inside hosts":  {func(p *policy.Plan) { p.Interfaces[0].Sources[0].Prefix = netip.MustParsePrefix("10.0.0.0/8") }, false},
		"one family's hosts": {func(p *policy.Plan) { p.Interfaces[0].Sources = p.Interfaces[0].Sources[:1] }, false},
		"hosts that none take": {func(p *policy.Plan) {
			p.Interfaces[0].Sources = append(p.Interfaces[0].Sources, policy.PlanSource{Prefix: netip.MustParsePrefix("10.0.0.0/8")})
		}, false},
		"two pins": {func(p *policy.Plan) {
			second := p.Pins[0]
			second.ID, second.Name, second.VIPs = 2, "second", nil
			p.Pins = append(p.Pins, second)
		}, false},
		"numbers of marks": {func(p *policy.Plan) {
			none := policy.PlanSource{Prefix: netip.MustParsePrefix("::/128")}
			p.Interfaces[0].Sources = append(p.Interfaces[0].Sources, none)
		}, true},
		"watched only": {func(p *policy.Plan) { p.Interfaces[0].Slot = 0 }, false},
	} {
		plan := onePin(1, "wan0", false)
		plan.Interfaces[0].Sources = []policy.PlanSource{{Prefix: every4, Pin: 1}, {Prefix: every6, Pin: 1}}
		c.change(&plan)
		content, err := wanted(plan)
		if err != nil {
			t.Fatal(err)
		}
		if got := content.mayRest(content.ifaces[1]); got != c.want {
			t.Errorf("%s: may rest %v, want %v", name, got, c.want)
		}
	}
}
