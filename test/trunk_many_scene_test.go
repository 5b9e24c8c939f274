// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// firstOfMany is the tag of the first of many outside VLANs.
const firstOfMany = 1001

// many is a scene with a router on a stick that has many outside VLANs beside LAN and
// WAN, a pin each, with the server behind every one.
type many struct {
	*scene
	count   int
	control http.Client     // of vippin's socket: starting a program takes long on a slow machine
	behind  *traffic.Server // at all of the VLANs
	flows   []*traffic.Flow
}

func (*many) tag(i int) uint16 { return firstOfMany + uint16(i) }

func (m *many) ifname(i int) string { return fmt.Sprintf("eth0.%d", m.tag(i)) }

// at is an address of a VLAN: .3 is the router's own, .2 the VIP, .10 the server's.
func (*many) at(i int, last byte) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 18, byte(i + 1), last})
}

const (
	vipOctet, ownOctet, serverOctet = 2, 3, 10
)

// list is all VLANs as network people write it.
func (m *many) list() string { return fmt.Sprintf("%d-%d", m.tag(0), m.tag(m.count-1)) }

// setMany builds it, without vippin.
func setMany(t *testing.T, name string, count int) *many {
	t.Helper()
	m := &many{
		scene: setScene(t, name, lab.Options{Hosts: 1, SingleRouter: true, Trunk: lab.TrunkTagged, TrunkNames: true}),
		count: count,
	}
	m.control.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(m.RA.RunDir(), "control.sock"))
	}}
	t.Cleanup(m.control.CloseIdleConnections)
	m.must(m.Server.Sysctl("net/ipv6/conf/default/disable_ipv6", "1")) // less to do for the machine
	m.must(m.RA.Sysctl("net/ipv6/conf/default/disable_ipv6", "1"))
	// The switch passes on all tags that it has no VLAN for, on a trunk of the server's.
	port := m.RA.TrunkPort()
	m.ip(m.WANSwitch, fmt.Sprintf("link add many mtu 1504 type veth peer name trunk mtu 1504 netns %s", m.Server.NS),
		"link add trunks mtu 1504 type bridge", "link set many master trunks up", "link set "+port+" master trunks", "link set trunks up")
	router, server := []string{}, []string{"link set trunk up"}
	var listen traffic.ServerOptions
	for i := range count {
		router = append(router, m.add(i)...)
		server = append(server, fmt.Sprintf("link add link trunk name v%d mtu 1500 type vlan id %d", i, m.tag(i)),
			fmt.Sprintf("link set v%d up", i), fmt.Sprintf("addr add %s/24 dev v%d", m.at(i, serverOctet), i))
		at := lab.Port(m.at(i, serverOctet), serverPort)
		listen.UDP, listen.TCP = append(listen.UDP, at), append(listen.TCP, at)
	}
	m.ip(m.RA.Node, router...)
	m.ip(m.Server, server...)
	m.listen(listen)
	m.must(m.RA.NFT(m.ctx, fmt.Sprintf(`
table inet more {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		oifname != "eth0.%d" ip saddr %s masquerade
	}
}
`, lab.LAN.Tag, lab.LAN.Prefix4())))
	return m
}

// listen starts the server behind the VLANs.
func (m *many) listen(at traffic.ServerOptions) {
	m.t.Helper()
	server, err := traffic.Serve(m.Server.Do, at)
	m.must(err)
	m.behind = server
	m.t.Cleanup(func() { m.must(server.Close()) })
}

// add is the commands that make a VLAN of the router's.
func (m *many) add(i int) []string { return m.addAs(i, m.ifname(i), m.tag(i)) }

// addAs gives it another name or tag.
func (m *many) addAs(i int, name string, tag uint16) []string {
	return []string{
		fmt.Sprintf("link add link eth0 name %s type vlan id %d", name, tag), "link set " + name + " up",
		fmt.Sprintf("addr add %s/24 dev %s", m.at(i, ownOctet), name), fmt.Sprintf("addr add %s/24 dev %s", m.at(i, vipOctet), name),
	}
}

// pins is a pin for each VLAN, found by its tag.
func (m *many) pins() string {
	text := "pins:\n"
	for i := range m.count {
		text += fmt.Sprintf("  - {vlan: %d, vips: [%s]}\n", m.tag(i), m.at(i, vipOctet))
	}
	return text
}

// begin starts vippin, and waits until it is MASTER on every VLAN. On a slow machine
// all these flows may keep the daemon from giving a sign of life for some seconds: the
// lease is longer there.
func (m *many) begin() *lab.Proc {
	m.t.Helper()
	daemon := m.start(m.RA, fmt.Sprintf("%svrrp: {lease: %s}\n", m.pins(), lab.Slowly(2*time.Second)))
	m.must(m.await("MASTER on every VLAN", func() (bool, error) {
		pins := m.status(m.RA).Pins
		return len(pins) == m.count && !slices.ContainsFunc(pins, func(pin policy.PinStatus) bool { return pin.Role != policy.RoleMaster }), nil
	}))
	return daemon
}

// origins is flows by name, and from where each is to come all its life.
type origins map[string]netip.AddrPort

// live begins a flow by a VLAN. Of UDP it is one-way, and the server sees what is lost.
func (m *many) live(all origins, proto string, i int, firstPort uint16, last byte) {
	m.t.Helper()
	port := firstPort + uint16(i)
	id := fmt.Sprintf("%s-%d-%d", proto, m.tag(i), port)
	f, err := traffic.StartFlow(m.ctx, m.Hosts[0].Do, traffic.FlowOptions{
		ID: id, Proto: proto, OneWay: proto == "udp", Interval: lab.Slowly(200 * time.Millisecond), Timeout: 2 * patience,
		Local: lab.Port(lab.HostEnds(0).V4, port), Remote: lab.Port(m.at(i, serverOctet), serverPort),
	})
	m.must(err)
	m.t.Cleanup(func() { f.Stop() })
	m.flows, all[id] = append(m.flows, f), lab.Port(m.at(i, last), port)
}

// newFlow is from which address the server sees a new flow by a VLAN.
func (m *many) newFlow(i int) netip.Addr {
	m.t.Helper()
	return m.source(m.Hosts[0], "udp", netip.AddrPort{}, m.at(i, serverOctet)).Addr()
}

// wantNew checks from where new flows by a VLAN come.
func (m *many) wantNew(what string, i int, last byte) {
	m.t.Helper()
	if got := m.newFlow(i); got != m.at(i, last) {
		m.t.Errorf("%s: a new flow by VLAN %d came from %s, want %s; not pinned were: %v",
			what, m.tag(i), got, m.at(i, last), m.pin(m.RA, m.tag(i)).UnpinnedBy)
	}
}

// toggle switches VLANs as "vippin pin" has the daemon do it, and returns those that
// were, in order.
func (m *many) toggle(action, vlans string) (pins []policy.PinState) {
	m.t.Helper()
	request, err := json.Marshal(map[string]string{"vlans": vlans})
	m.must(err)
	response, err := m.control.Post("http://vippin/v1/pins/"+action, "application/json", bytes.NewReader(request))
	m.must(err)
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		m.t.Fatalf("switch %s %s: %s\n%s", vlans, action, response.Status, m.Describe())
	}
	m.must(json.NewDecoder(response.Body).Decode(&pins))
	return pins
}

// switched checks what a toggle answered.
func (m *many) switched(what string, pins []policy.PinState, on bool, vlans ...int) {
	m.t.Helper()
	wrong := len(pins) != len(vlans)
	for n, pin := range pins {
		wrong = wrong || pin.VLAN.Outer != m.tag(vlans[n]) || pin.Enabled != on || pin.Interface != m.ifname(vlans[n])
	}
	if wrong {
		m.t.Fatalf("%s: want %d VLANs, on: %t; got %+v", what, len(vlans), on, pins)
	}
}

// everyone is all VLANs.
func (m *many) everyone() (vlans []int) {
	for i := range m.count {
		vlans = append(vlans, i)
	}
	return vlans
}

// took logs how long a step took, on a machine that may be emulated.
func (m *many) took(what string, step func()) {
	m.t.Helper()
	begun := time.Now()
	step()
	m.t.Logf("%s: %s", what, time.Since(begun).Round(time.Millisecond))
}

// passed waits until some datagrams more of every flow have come to the server.
func (m *many) passed(datagrams uint64) {
	m.t.Helper()
	before := m.behind.Streams()
	var silent []string
	err := m.await("all flows at the server", func() (bool, error) {
		seen := m.behind.Streams()
		silent = silent[:0]
		for _, f := range m.flows {
			if r := f.Report(); seen[r.ID].Packets < before[r.ID].Packets+datagrams {
				silent = append(silent, fmt.Sprintf("%s: sent %d, seen %d, %v", r.ID, r.Sent, seen[r.ID].Packets, r.Errors))
			}
		}
		return len(silent) == 0, nil
	})
	if err != nil {
		m.t.Fatalf("%v: %d are silent: %q\n%s", err, len(silent), first(silent, 5), m.Describe())
	}
}

// unmoved checks that the server has missed nothing of the living flows, and that each
// came from one end: the one it had at first.
func (m *many) unmoved(want origins) {
	m.t.Helper()
	streams, packets := m.behind.Streams(), uint64(0)
	for id, end := range want {
		seen := streams[id]
		packets += seen.Packets
		if seen.Missing != 0 || len(seen.Sources) != 1 || seen.Sources[0] != end {
			m.t.Errorf("flow %s: %d of %d datagrams lost, sources %v, want %s", id, seen.Missing, seen.Packets+seen.Missing, seen.Sources, end)
		}
	}
	for _, f := range m.flows {
		if r := f.Report(); r.Broken() || r.Moved() {
			m.t.Errorf("flow %s: errors %v, sources %v", r.ID, r.Errors, r.Sources)
		}
	}
	m.t.Logf("%d flows, %d packets", len(want), packets)
}

// noStrays checks what a capture on the trunk saw.
func (m *many) noStrays(capture *traffic.Capture) {
	m.t.Helper()
	frames, strays := capture.Frames(nil), 0
	for _, frame := range frames {
		if m.strays(frame) {
			if strays++; strays <= 10 {
				proto, src, dst := traffic.FlowOf(frame.Packet)
				m.t.Errorf("on the trunk, to the router: %t: %s from %s to %s, tags %v", frame.Outgoing, proto, src, dst, tagsIn(frame.Packet))
			}
		}
	}
	m.t.Logf("%d frames on the trunk, %d do not belong there", len(frames), strays)
}

// strays tells whether a packet on the trunk has a tag or an address that do not
// belong together: outside there is nothing of inside hosts, nor of another VLAN.
func (m *many) strays(frame traffic.Frame) bool {
	proto, src, dst := traffic.FlowOf(frame.Packet)
	if proto != "udp" && proto != "tcp" && proto != "icmp" || dst.Addr().IsMulticast() {
		return false
	}
	near, far := src.Addr(), dst.Addr() // the router's end as the VLAN has it, and the other one
	if frame.Outgoing {
		near, far = far, near
	}
	tags := tagsIn(frame.Packet)
	if len(tags) != 1 {
		return true
	}
	i := int(tags[0].id) - firstOfMany
	switch {
	case tags[0].id == lab.LAN.Tag:
		return far != lab.HostEnds(0).V4
	case tags[0].id == lab.WAN.Tag: // by the default route, while a VLAN is not there
		return near != lab.WAN.VIP4 && near != m.RA.Own(lab.WAN).V4
	case i < 0 || i >= m.count:
		return true
	}
	return near != m.at(i, vipOctet) && near != m.at(i, ownOctet) || far != m.at(i, serverOctet)
}

// complaints are what a daemon logged of errors and warnings.
func (s *scene) complaints(daemon *lab.Proc) (lines []string) {
	s.t.Helper()
	text, err := os.ReadFile(daemon.LogFile)
	s.must(err)
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "level=ERROR") || strings.Contains(line, "level=WARN") || strings.Contains(line, "panic") {
			lines = append(lines, line)
		}
	}
	return lines
}
