// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"vippin/policy"
)

func TestRoutersSnapshot(t *testing.T) {
	s := tell(t, planOf())
	s.send(150)
	s.run(40 * ms)
	vmacked := s.packet(vl2, policy.In, other2, 10, 100, vip2)
	vmacked.SrcMAC = [6]byte{0, 0, 0x5e, 0, 1, 10}
	s.note(s.tracker.Advert(s.now, vmacked))
	v6 := s.packet(vl2, policy.In, "fe80::4", 10, 100, ll2, vip2b)
	v6.SrcMAC = [6]byte{0, 0, 0x5e, 0, 1, 10} // that is IPv4's
	s.note(s.tracker.Advert(s.now, v6))
	s.note(s.tracker.Advert(s.now, s.packet(eth0, policy.In, "203.0.113.4", 5, 100, "203.0.113.5")))
	s.run(10 * ms)

	got, err := json.MarshalIndent(s.tracker.Routers(s.now), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	row := func(iface string, vlan, vrid int, family, checksum, vmac, routers string) string {
		return fmt.Sprintf(`{"interface":%q,"vlan":%d,"vrid":%d,"family":%q,"version":3,"checksum":%q,"role":"BACKUP",`+
			`"virtual_mac":%s,"routers":[%s],"ignored":{},"conflict":""}`, iface, vlan, vrid, family, checksum, vmac, routers)
	}
	router := func(addr string, priority, seen int, self string) string {
		return fmt.Sprintf(`{"address":%q,"priority":%d,"interval_ms":100,"last_seen_ms":%d,"self":%s}`, addr, priority, seen, self)
	}
	want := "[" + row("eth0", 0, 5, "ipv4", "pseudo-header", "false", router("203.0.113.4", 100, 10, "false")) + "," +
		row("eth0.2", 2, 10, "ipv4", "pseudo-header", "true",
			router(self2, 150, 50, "true")+","+router(other2, 100, 10, "false")) + "," +
		row("eth0.2", 2, 10, "ipv6", "rfc", "false", router("fe80::4", 100, 10, "false")) + "]"
	if compact(t, got) != compact(t, []byte(want)) {
		t.Errorf("got  %s\nwant %s", compact(t, got), compact(t, []byte(want)))
	}
}

func compact(t *testing.T, text []byte) string {
	t.Helper()
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestInvalidAdvertsAreCountedOnly(t *testing.T) {
	s := tell(t, onePin(vip2))
	s.master()
	for reason := policy.AdvertShort; reason < policy.AdvertReasons; reason++ {
		for range 5 { // as often as would make a conflict
			bad := s.packet(vl2, policy.In, other2, 10, 200, vip2)
			bad.Reason = reason
			s.note(s.tracker.Advert(s.now, bad))
			s.run(adv / 2)
			s.send(150)
			s.run(adv / 2)
		}
	}
	s.is(master)
	s.changes()
	rows := s.tracker.Routers(s.now)
	if len(rows) != 2 || rows[0].VRID != 0 || rows[1].VRID != 10 {
		t.Fatalf("rows: %+v", rows)
	}
	if len(rows[1].Routers) != 1 {
		t.Errorf("an invalid advert made a router: %+v", rows[1].Routers)
	}
	for reason := policy.AdvertShort; reason < policy.AdvertReasons; reason++ {
		row := rows[1]
		if reason == policy.AdvertFragment { // names no VRID
			row = rows[0]
		}
		if row.Ignored[reason.String()] != 5 {
			t.Errorf("%s counted %d times in %v, want 5", reason, row.Ignored[reason.String()], row.Ignored)
		}
	}
}

func TestAdvertsAreJudgedAgain(t *testing.T) {
	s := tell(t, onePin(vip2))
	damaged := s.packet(vl2, policy.Out, self2, 10, 150, vip2)
	damaged.Payload[2]++ // and the dataplane called it valid
	s.note(s.tracker.Advert(s.now, damaged))
	ah := s.packet(vl2, policy.Out, self2, 10, 150, vip2)
	ah.AH = true
	s.note(s.tracker.Advert(s.now, ah))
	row := s.tracker.Routers(s.now)[0]
	if row.Ignored["checksum"] != 1 || row.Ignored["auth"] != 1 || len(row.Routers) != 0 {
		t.Errorf("%+v", row)
	}
}

func TestEventsOutOfOrder(t *testing.T) {
	s := tell(t, onePin(vip2))
	late := s.packet(vl2, policy.Out, self2, 10, 150, vip2)
	s.run(50 * ms)
	s.send(150)
	s.run(10 * ms)
	s.note(s.tracker.Advert(s.now, late))
	if got := s.tracker.Routers(s.now)[0].Routers[0].LastSeen; got != 10 {
		t.Errorf("last seen %v ms ago, want 10", got)
	}
}

func TestGroupByVRIDOrVIP(t *testing.T) {
	// By VRID, whatever is announced.
	s := tell(t, planOf())
	s.note(s.tracker.Advert(s.now, s.packet(vl2, policy.In, other2, 10, 100, "198.51.100.99")))
	s.evidence(other2 + " advertises VRID 10")
	// The VRID of another interface is nobody's, nor are VIPs on another one.
	s.note(s.tracker.Advert(s.now, s.packet(vl20, policy.In, third2, 10, 100, vip2)))
	for _, line := range s.tracker.Groups(s.now, time.Time{})[0].Evidence {
		if line == third2+" advertises VRID 10 on eth0.20, priority 100, heard 0s ago" {
			t.Error("bound to the group:", line)
		}
	}
	// By a VIP that is announced.
	s.note(s.tracker.Advert(s.now, s.packet(vl20, policy.In, third2, 33, 100, "203.0.113.77", vip20)))
	s.evidence(third2 + " advertises VRID 33 on eth0.20")

	// A plan that names it later binds what was heard before.
	plan := planOf()
	plan.Interfaces[1].VRIDs = append(plan.Interfaces[1].VRIDs, policy.PlanVRID{VRID: 10, Group: 1})
	s.note(s.tracker.Update(s.now, plan))
	s.evidence(third2 + " advertises VRID 10 on eth0.20")
}

func TestAdvertOnMacvlanCountsForItsInterface(t *testing.T) {
	s := tell(t, onePin(vip2))
	s.links[vmac] = &policy.Link{Index: vmac, Name: "vrrp.10", Kind: "macvlan", Parent: vl2, Up: true}
	s.hold(vmac, vip2)
	s.note(s.tracker.Advert(s.now, s.packet(vmac, policy.Out, self2, 10, 150, vip2)))
	s.evidence("own adverts of VRID 10 leave eth0.2")
	s.run(time.Second)
	s.is(fault, "adverts have stopped")
}

func TestTaggedFramesOnTrunk(t *testing.T) {
	s := tell(t, planOf())
	trunk := func(vlan policy.VLAN, src string, dir policy.Direction) {
		seen := s.packet(eth0, dir, src, 10, 100, vip2)
		seen.VLAN = vlan
		s.note(s.tracker.Advert(s.now, seen))
	}
	trunk(policy.VLAN{Outer: 2}, other2, policy.In) // seen on eth0.2 too
	if rows := s.tracker.Routers(s.now); len(rows) != 0 {
		t.Fatalf("counted twice: %+v", rows)
	}
	trunk(policy.VLAN{Outer: 3}, other2, policy.In) // no interface of its own
	trunk(policy.VLAN{Outer: 100, Inner: 20}, other2, policy.In)
	rows := s.tracker.Routers(s.now)
	tagged := s.packet(vl2, policy.In, third2, 10, 100, vip2) // a VLAN within VLAN 2 is not VLAN 2
	tagged.VLAN = policy.VLAN{Outer: 7}
	s.note(s.tracker.Advert(s.now, tagged))
	for _, line := range s.tracker.Groups(s.now, time.Time{})[0].Evidence {
		if strings.Contains(line, third2) {
			t.Error("bound to the group:", line)
		}
	}
	if rows := s.tracker.Routers(s.now); len(rows) != 3 || rows[2].VLAN.String() != "2.7" {
		t.Errorf("rows: %+v", rows)
	}
	if len(rows) != 2 || rows[0].VLAN.String() != "3" || rows[1].VLAN.String() != "100.20" || rows[0].Interface != "eth0" {
		t.Fatalf("rows: %+v", rows)
	}
}

func TestBounds(t *testing.T) {
	s := tell(t, planOf())
	flood := func(n int) {
		for i := range n {
			seen := s.packet(100+i/200, policy.In, other2, uint8(1+i%200), 100, "198.51.100.99")
			s.note(s.tracker.Advert(s.now, seen))
		}
	}
	flood(maxVirtualRouters + 500)
	if got := len(s.tracker.Routers(s.now)); got != maxVirtualRouters || s.tracker.Overflow() != 500 {
		t.Fatalf("%d virtual routers, overflow %d", got, s.tracker.Overflow())
	}
	// Those of the plan and our own have room all the same.
	s.hear(other2, 100)
	s.evidence(other2 + " advertises VRID 10 on eth0.2")
	s.note(s.tracker.Advert(s.now, s.packet(vl20, policy.Out, self2, 99, 100, vip20)))
	if got := len(s.tracker.Routers(s.now)); got != maxVirtualRouters+2 {
		t.Errorf("%d virtual routers", got)
	}
	// Spoofed senders push out nobody who advertises.
	for i := range 2 * maxRouters {
		s.hear(netip.AddrFrom4([4]byte{198, 51, 100, byte(100 + i)}).String(), 100)
	}
	count := func() int {
		for _, row := range s.tracker.Routers(s.now) {
			if row.Interface == "eth0.2" {
				return len(row.Routers)
			}
		}
		return 0
	}
	if got := count(); got != maxRouters {
		t.Errorf("%d routers, want %d", got, maxRouters)
	}
	s.evidence(other2 + " advertises")
	s.run(time.Second) // silent ones make room
	before := s.tracker.Overflow()
	s.hear(third2, 100)
	s.evidence(third2 + " advertises")
	if s.tracker.Overflow() != before || count() != maxRouters {
		t.Errorf("no room: %d routers, overflow %d, was %d", count(), s.tracker.Overflow(), before)
	}
	// What is silent for long is forgotten.
	s.run(defaultMemory)
	s.note(s.tracker.Tick(s.now + 1))
	if got := len(s.tracker.Routers(s.now)); got > 3 {
		t.Errorf("%d virtual routers after %s of silence", got, defaultMemory)
	}
	for i := range maxNotices + 10 {
		s.note(s.tracker.FIFO(s.now, "INSTANCE", fmt.Sprint(i), "MASTER", 0))
	}
	if got := len(s.tracker.fifo); got != maxNotices {
		t.Errorf("%d names remembered", got)
	}
}

func TestMasterDown(t *testing.T) {
	for _, c := range []struct {
		version, priority uint8
		interval, want    time.Duration
	}{
		{3, 100, adv, 300*ms + 156*adv/256}, // RFC 9568 section 6.1
		{3, 255, time.Second, 3*time.Second + time.Second/256},
		{2, 100, 2 * time.Second, 6*time.Second + 156*time.Second/256}, // RFC 3768 section 6.1
		{3, 100, 0, 3*time.Second + 156*time.Second/256},
	} {
		if got := masterDown(c.version, c.priority, c.interval); got != c.want {
			t.Errorf("masterDown(%d, %d, %s) = %s, want %s", c.version, c.priority, c.interval, got, c.want)
		}
	}
}

// BenchmarkObserve: a role change has 5 ms from the kernel's event to the maps.
func BenchmarkObserve(b *testing.B) {
	var plan policy.Plan
	var obs policy.Observed
	for i := 1; i <= 1000; i++ {
		vip := netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
		plan.Groups = append(plan.Groups, policy.PlanGroup{ID: uint32(i), Name: fmt.Sprint(i)})
		plan.Pins = append(plan.Pins, policy.PlanPin{ID: uint32(i), Group: uint32(i), Ifindex: i, VIPs: []netip.Addr{vip}})
		obs.Links = append(obs.Links, policy.Link{Index: i, Up: true, Addrs: []policy.Addr{
			{Prefix: netip.PrefixFrom(vip, 32)},
			{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 19, byte(i >> 8), byte(i)}), 24)},
		}})
	}
	tracker := NewTracker(Config{})
	tracker.Update(1, plan)
	tracker.Observe(2, obs)
	now := time.Second
	for b.Loop() {
		now++
		if changes := tracker.Observe(now, obs); len(changes) != 0 {
			b.Fatal("changes:", changes)
		}
	}
}

// With vmac_xmit_base adverts come from the interface's own MAC, and a BACKUP sends
// none: the interface that lends the virtual MAC tells of it.
func TestVirtualMACWithoutAdvertsFromIt(t *testing.T) {
	s := tell(t, planOf())
	shown := func() bool {
		t.Helper()
		s.observe()
		rows := s.tracker.Routers(s.now)
		if len(rows) != 1 {
			t.Fatalf("rows %+v", rows)
		}
		return rows[0].VirtualMAC
	}
	s.note(s.tracker.Advert(s.now, s.packet(vl2, policy.In, other2, 10, 100, vip2)))
	if shown() {
		t.Error("a virtual MAC out of nothing")
	}
	link := policy.Link{Index: vmac, Name: "vrrp.10", Kind: "macvlan", Parent: vl2, Up: true, MAC: policy.MAC{0, 0, 0x5e, 0, 1, 10}}
	for name, change := range map[string]func(*policy.Link){
		"on another interface": func(l *policy.Link) { l.Parent = vl20 },
		"of another VRID":      func(l *policy.Link) { l.MAC[5] = 11 },
		"of IPv6":              func(l *policy.Link) { l.MAC[4] = 2 },
		"of a VLAN":            func(l *policy.Link) { l.Kind = "vlan" },
	} {
		other := link
		change(&other)
		s.links[vmac] = &other
		if shown() {
			t.Errorf("a virtual MAC %s counts", name)
		}
	}
	s.links[vmac] = &link
	if !shown() {
		t.Error("the virtual MAC is not shown")
	}
}

// Evidence tells by which MAC a VIP is held.
func TestEvidenceNamesVirtualMAC(t *testing.T) {
	s := tell(t, onePin(vip2))
	s.links[vmac] = &policy.Link{Index: vmac, Name: "vrrp.10", Kind: "macvlan", Parent: vl2, Up: true, MAC: policy.MAC{0, 0, 0x5e, 0, 1, 10}}
	s.observe()
	s.evidence("198.51.100.2 is not on eth0.2")
	s.hold(vmac, vip2)
	s.evidence("198.51.100.2 is on eth0.2 (MAC 00:00:5e:00:01:0a by vrrp.10)")
	s.drop(vmac, vip2)
	s.hold(vl2, vip2)
	if lines := s.tracker.Groups(s.now, time.Unix(0, 0))[0].Evidence; len(lines) == 0 || strings.Contains(lines[0], "MAC") {
		t.Errorf("evidence %q", lines)
	}
}
