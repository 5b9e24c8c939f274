// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
	"vippin/policy"
)

func (l *replicaLab) removeOne(t *testing.T, removal Removal) bool {
	t.Helper()
	gone, err := l.replica.Remove([]Removal{removal})
	if err != nil {
		t.Fatal(err)
	}
	return gone[0]
}

// TestRemove: a flow goes with its mapping, but not when its public end is
// another one by now.
func TestRemove(t *testing.T) {
	l := newReplicaLab(t, masqueradeWAN)
	server, client := socket(t, l.wan, server7), socket(t, l.lan, "192.168.1.10:4000")
	exchange(t, client, server, server7)
	flow := udpFlow("192.168.1.11:4000", vip+":4001", server7)
	l.mustBecome(t, Installation{Flow: &flow}, Installed)
	l.mustHaveMappings(t, 2)
	born := udpFlow("192.168.1.10:4000", vip+":4000", server7)
	for _, f := range []policy.Flow{flow, born} {
		other := f.To
		other.Port++
		if l.removeOne(t, Removal{Key: f.FlowKey, To: other, Pin: f.Pin}) {
			t.Errorf("removed %v by another public end", f.FlowKey)
		}
	}
	l.mustHaveMappings(t, 2)
	if got := exchange(t, client, server, server7); got.String() != vip+":4000" {
		t.Errorf("it comes from %v", got)
	}
	if !l.removeOne(t, Removal{Key: flow.FlowKey, Pin: flow.Pin}) || l.removeOne(t, Removal{Key: flow.FlowKey, To: flow.To, Pin: flow.Pin}) {
		t.Error("a flow was not removed just once")
	}
	l.mustHaveMappings(t, 1)
	if !l.removeOne(t, Removal{Key: born.FlowKey, To: born.To, Pin: born.Pin}) {
		t.Error("a flow that was born here was not removed")
	}
	l.mustHaveMappings(t, 1) // a sweep's affair
	age(t, l.d)
	if n, err := l.d.Sweep(); err != nil || n != 1 {
		t.Errorf("swept %d, %v", n, err)
	}
	l.mustHaveMappings(t, 0)
}

// age makes all mappings old and silent, so that sweeps look at them.
func age(t *testing.T, d *Dataplane) {
	t.Helper()
	ends, err := readMap[flowKey, publicEnd](d.maps.ByLocal)
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range ends {
		value.LastOutNs = 1
		var public localEnd
		err := d.maps.ByPublic.Lookup(publicKey(key, &value), &public)
		public.BornNs = 1
		if err := errors.Join(err, d.maps.ByLocal.Update(key, value, ebpf.UpdateExist),
			d.maps.ByPublic.Update(publicKey(key, &value), public, ebpf.UpdateExist)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSweepsKnowNativeMappings: a mapping that leads to itself stays for as long
// as its entry lives, in a zone too, and goes after it.
func TestSweepsKnowNativeMappings(t *testing.T) {
	l := newReplicaLab(t, masqueradeWAN)
	plain, zoned := udpFlow("192.168.1.10:4000", vip+":4000", server7), udpFlow("192.168.1.10:4001", vip+":4001", server7)
	zoned.Zone = 5
	six := udpFlow("[2001:db8:1::10]:4000", "["+vip6+"]:4000", "[2001:db8:100::9]:7000")
	flows := []policy.Flow{plain, zoned, six}
	mustInstall(t, l.replica, installations(flows), Installed)
	age(t, l.d)
	c, err := newCollector(l.d, l.d.log)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.conn.Close() }()
	if err := c.refresh(); err != nil {
		t.Fatal(err)
	}
	for _, f := range flows { // late events of earlier flows
		if err := c.destroyed(&conntrack.Flow{Orig: origTuple(&f.FlowKey), Reply: wireTuple(&f)}); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := c.sweep(context.Background(), monotonic()); err != nil || n != 0 || len(c.dying) != 0 {
		t.Errorf("swept %d of the living, %d are dying, %v", n, len(c.dying), err)
	}
	if n, err := l.d.Sweep(); err != nil || n != 0 {
		t.Errorf("a comparison swept %d of the living, %v", n, err)
	}
	l.mustHaveMappings(t, 3)
	var refs []conntrack.Ref
	for i := range flows {
		refs = append(refs, conntrack.Ref{Orig: origTuple(&flows[i].FlowKey)})
	}
	results, err := l.replica.conn.Delete(refs)
	if err := errors.Join(append(results, err)...); err != nil {
		t.Fatal(err)
	}
	if err := c.destroyed(&conntrack.Flow{Orig: refs[1].Orig, Reply: wireTuple(&zoned)}); err != nil {
		t.Fatal(err)
	}
	if n, err := c.sweep(context.Background(), monotonic()); err != nil || n != 1 {
		t.Errorf("swept %d after an event, %v, want 1", n, err)
	}
	if n, err := l.d.Sweep(); err != nil || n != 2 {
		t.Errorf("a comparison swept %d, %v, want 2", n, err)
	}
	l.mustHaveMappings(t, 0)
}

// TestRestore: an interface goes down and comes up, which makes the kernel flush
// its masqueraded flows, and the flows go on with the same source.
func TestRestore(t *testing.T) {
	l := newReplicaLab(t, masqueradeWAN)
	if err := sysctls("net/netfilter/nf_conntrack_tcp_loose=0", "net/ipv6/conf/wan0/keep_addr_on_down=1"); err != nil {
		t.Fatal(err)
	}
	streams := l.streams(t)
	flows := l.told(t)
	wan, err := netlink.LinkByName("wan0")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetDown(wan); err != nil {
		t.Fatal(err)
	}
	await(t, "the kernel flushes", func() bool {
		used, _, err := l.replica.conn.Usage()
		return err == nil && used == 0
	})
	outcomes, err := l.replica.Restore(flows)
	if err != nil {
		t.Fatal(err)
	}
	for i, got := range outcomes {
		if got != Installed {
			t.Errorf("%v: %v", flows[i].FlowKey, got)
		}
	}
	for _, f := range flows {
		entry, err := l.replica.conn.Get(origTuple(&f.FlowKey))
		if err != nil || entry.Timeout > 10*time.Minute != (f.Proto == unix.IPPROTO_TCP) {
			t.Errorf("entry %+v, %v, want ordinary timeouts", entry, err)
		}
	}
	l.mustHaveMappings(t, len(flows))
	if err := plug("wan0", vip6+"/128"); err != nil { // the kernel keeps only those without a lifetime
		t.Fatal(err)
	}
	for _, s := range streams {
		s.goesOn(t)
	}
	// And once more: they are none of masquerade's now.
	if err := errors.Join(netlink.LinkSetDown(wan), plug("wan0", vip6+"/128")); err != nil {
		t.Fatal(err)
	}
	for _, s := range streams {
		s.goesOn(t)
	}
}

// TestRestoreAfterPacket: a packet of the flow was faster and got another source.
func TestRestoreAfterPacket(t *testing.T) {
	l := newReplicaLab(t, masqueradeWAN)
	server, client, rival := socket(t, l.wan, server7), socket(t, l.lan, "192.168.1.10:4000"), socket(t, l.lan, "192.168.1.11:4000")
	if got := exchange(t, rival, server, server7); got.String() != vip+":4000" {
		t.Fatalf("the first flow comes from %v", got)
	}
	source := exchange(t, client, server, server7) // another port
	flow := udpFlow("192.168.1.10:4000", source.String(), server7)
	other := udpFlow("192.168.1.11:4000", vip+":4000", server7)
	results, err := l.replica.conn.Delete([]conntrack.Ref{{Orig: origTuple(&flow.FlowKey)}, {Orig: origTuple(&other.FlowKey)}})
	if err := errors.Join(append(results, err)...); err != nil {
		t.Fatal(err)
	}
	if got := exchange(t, client, server, server7); got == source {
		t.Fatalf("the flow has its old source %v though conntrack has forgotten it", got)
	}
	outcomes, err := l.replica.Restore([]policy.Flow{flow, other})
	if err != nil || outcomes[0] != Installed {
		t.Fatalf("%v, %v", outcomes, err)
	}
	if got := exchange(t, client, server, server7); got != source {
		t.Errorf("it comes from %v, want %v", got, source)
	}
	if got := exchange(t, rival, server, server7); got != netip.MustParseAddrPort(vip+":4000") {
		t.Errorf("the rival comes from %v; outcomes %v", got, outcomes)
	}
}
