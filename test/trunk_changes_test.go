// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// ways in which the VLANs of a trunk come and go; each has VLANs of its own.
const (
	deletedVLAN = iota
	renamedVLAN
	retaggedVLAN // its name goes to another tag
	takenVLAN    // that one
	changingVLANs
)

// placed waits until the daemon has put into force that a pin is on an interface, or
// with none waits for one, and that nothing else is to be told; the others must not
// wait for anything.
func (m *many) placed(i int, ifname string, waiting ...int) {
	m.t.Helper()
	var status policy.Status
	begun := time.Now()
	err := m.await(fmt.Sprintf("the pin of VLAN %d on %q", m.tag(i), ifname), func() (bool, error) {
		status = m.status(m.RA)
		if len(status.Warnings) != len(waiting) {
			return false, nil
		}
		for n, vlan := range waiting {
			if want := fmt.Sprintf("pin %d: no interface carries VLAN %d:", m.tag(vlan), m.tag(vlan)); !strings.HasPrefix(status.Warnings[n], want) {
				return false, nil
			}
		}
		for n, pin := range status.Pins {
			if (pin.Role == policy.RoleMaster) == slices.Contains(waiting, n) || n == i && ifname != "" && pin.Interface != ifname {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		m.t.Fatalf("%v: warnings %q, pins %+v\n%s", err, status.Warnings, status.Pins, m.Describe())
	}
	if ifname != "" { // from when the flows of before are noted
		m.must(m.await("new flows from the VIP by "+ifname, func() (bool, error) { return m.newFlow(i) == m.at(i, vipOctet), nil }))
	}
	m.t.Logf("followed within %s", time.Since(begun).Round(time.Millisecond))
}

// Sub-interfaces of a trunk are deleted and made again, renamed, and given another tag.
// The flows on the others do not notice, status says which pin waits, and when the VLAN
// comes back, whatever its name, its pin works, without a restart. So it does when
// the whole trunk was down.
func TestTrunkComesAndGoes(t *testing.T) {
	m := setMany(t, "comes", 12)
	daemon := m.begin()
	pid := daemon.Pid()
	capture, err := traffic.StartCapture(m.WANSwitch.Do, m.RA.TrunkPort())
	m.must(err)
	defer capture.Close()
	want := m.muster(changingVLANs)
	m.passed(1)

	t.Run("deleted", func(t *testing.T) {
		m := m.in(t)
		disturbed := m.source(m.Hosts[0], "udp", lab.Port(lab.HostEnds(0).V4, 5000), m.at(deletedVLAN, serverOctet))
		m.ip(m.RA.Node, "link del "+m.ifname(deletedVLAN))
		m.placed(deletedVLAN, "", deletedVLAN)
		m.wantNew("beside it", changingVLANs, vipOctet)
		m.ip(m.RA.Node, m.add(deletedVLAN)...)
		m.placed(deletedVLAN, m.ifname(deletedVLAN))
		m.wantNew("made again", deletedVLAN, vipOctet)
		if got := m.source(m.Hosts[0], "udp", lab.Port(lab.HostEnds(0).V4, 5000), m.at(deletedVLAN, serverOctet)); got.Addr() != disturbed.Addr() {
			t.Errorf("a flow of before came from %s, and comes from %s", disturbed, got)
		}
	})
	t.Run("renamed", func(t *testing.T) {
		m := m.in(t)
		name := m.ifname(renamedVLAN)
		m.ip(m.RA.Node, "link set "+name+" down", "link set "+name+" name outside", "link set outside up")
		m.placed(renamedVLAN, "outside")
		m.wantNew("renamed", renamedVLAN, vipOctet)
	})
	t.Run("another tag", func(t *testing.T) {
		m := m.in(t)
		name := m.ifname(retaggedVLAN)
		m.ip(m.RA.Node, "link del "+name, "link del "+m.ifname(takenVLAN))
		m.ip(m.RA.Node, m.addAs(takenVLAN, name, m.tag(takenVLAN))...)
		m.placed(takenVLAN, name, retaggedVLAN)
		m.wantNew("under another's name", takenVLAN, vipOctet)
		m.ip(m.RA.Node, m.addAs(retaggedVLAN, "other", m.tag(retaggedVLAN))...)
		m.placed(retaggedVLAN, "other")
		m.wantNew("under another name", retaggedVLAN, vipOctet)
	})
	m.passed(2)
	m.unmoved(want)
	t.Run("the trunk down", func(t *testing.T) {
		m := m.in(t)
		m.ip(m.RA.Node, "link set eth0 down")
		m.must(m.await("no MASTER", func() (bool, error) {
			return !slices.ContainsFunc(m.status(m.RA).Pins, func(pin policy.PinStatus) bool { return pin.Role == policy.RoleMaster }), nil
		}))
		m.ip(m.RA.Node, "link set eth0 up")
		m.placed(renamedVLAN, "outside")
		for i := range m.count {
			m.wantNew("up again", i, vipOctet)
		}
	})
	m.must(capture.Close())
	m.noStrays(capture)
	if lines := m.complaints(daemon); len(lines) > 0 || daemon.Pid() != pid || !daemon.Alive() {
		t.Errorf("vippin complained: %q", lines)
	}
}

// muster begins living flows by all VLANs from first on, and says from where they are
// to come.
func (m *many) muster(first int) origins {
	m.t.Helper()
	want := make(origins)
	for i := first; i < m.count; i++ {
		m.live(want, "udp", i, 10000, vipOctet)
		m.live(want, "tcp", i, 20000, vipOctet)
	}
	return want
}

// in is the scene within a subtest.
func (m *many) in(t *testing.T) *many {
	inner, s := *m, *m.scene
	s.t = t
	inner.scene = &s
	return &inner
}

// A VLAN whose flows are replicated is deleted on the MASTER. The peer keeps all of
// them and takes over; when the VLAN is made again they come back, and neither daemon
// makes a fuss.
func TestTrunkDeletedInSync(t *testing.T) {
	const each = 20 // of TCP, UDP and ICMP echo
	s := setScene(t, "delsync", lab.Options{Firewall: true, Trunk: lab.TrunkTagged, TrunkAlone: true, TrunkNames: true})
	s.must(s.AddSyncLink())
	p := &pair{scene: s}
	s.must(s.StartRouters(s.ctx, lab.Keepalived{}))
	daemons := []*lab.Proc{s.start(s.RA, p.config(s.RA, byTag(s.RA))), s.start(s.RB, p.config(s.RB, onWAN))}
	p.awaitRole(s.RA, policy.RoleMaster)
	p.awaitRole(s.RB, policy.RoleBackup)
	p.awaitSync()
	troop := p.muster(each, 20000, false)
	p.awaitAgreement(troop.count)

	wan := s.RA.Ifname(lab.WAN)
	s.ip(s.RA.Node, "link del "+wan)
	p.awaitRole(s.RB, policy.RoleMaster)
	troop.allAnswered()
	if got := len(p.mappings(s.RB)); got < troop.count {
		t.Errorf("the peer has %d of %d flows left", got, troop.count)
	}
	if warnings := s.status(s.RA).Warnings; !slices.ContainsFunc(warnings, func(w string) bool {
		return strings.HasPrefix(w, "pin 2: no interface carries VLAN 2:")
	}) {
		t.Errorf("of the deleted VLAN there is no word: %q", warnings)
	}

	s.must(s.RA.Keepalived().Stop())
	s.ip(s.RA.Node, slices.Concat([]string{
		fmt.Sprintf("link add link eth0 name %s type vlan id %d", wan, lab.WAN.Tag), "link set " + wan + " up",
	}, addresses(wan, own), routes(wan))...)
	p.awaitSync()
	p.awaitAgreement(troop.count)
	s.must(s.RA.Keepalived().Restart())
	p.awaitRole(s.RA, policy.RoleMaster)
	troop.allAnswered()
	for _, daemon := range daemons {
		if lines := s.complaints(daemon); len(lines) > 10 || slices.ContainsFunc(lines, func(line string) bool { return strings.Contains(line, "panic") }) {
			t.Errorf("vippin complained %d times: %q", len(lines), first(lines, 20))
		} else {
			t.Logf("vippin said: %q", lines)
		}
	}
}
