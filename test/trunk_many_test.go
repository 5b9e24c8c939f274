// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"vippin/test/lab"
	"vippin/test/traffic"
)

// Every one of 200 VLANs on a trunk is switched off and on under its traffic: one by
// one, some and all at once. What lives keeps its source, whatever that is, and loses
// nothing; what begins gets the one that its pin says; and nothing passes the trunk
// that does not belong there.
func TestTrunkMany(t *testing.T) {
	var m *many
	begun := time.Now()
	m = setMany(t, "many", 200)
	t.Logf("200 VLANs made: %s", time.Since(begun).Round(time.Millisecond))
	var daemon *lab.Proc
	m.took("started", func() { daemon = m.begin() })
	capture, err := traffic.StartCapture(m.WANSwitch.Do, m.RA.TrunkPort())
	m.must(err)
	defer capture.Close()
	want := make(origins)
	m.took("flows begun while on", func() {
		for i := range m.count {
			m.live(want, "udp", i, 10000, vipOctet)
			if i%10 == 0 || full() {
				m.live(want, "tcp", i, 20000, vipOctet)
			}
		}
	})
	m.took("all off", func() { m.vippin(m.RA, "pin", "off", m.list()) })
	m.took("flows begun while off", func() {
		for i := range m.count {
			m.live(want, "udp", i, 30000, ownOctet)
		}
	})
	m.passed(1)
	m.took("all on", func() { m.vippin(m.RA, "pin", "on", m.list()) })
	m.took("new flows while on", func() {
		for i := range m.count {
			m.wantNew("all on", i, vipOctet)
		}
	})
	m.took("off, one by one", func() {
		for i := range m.count {
			m.switched("off", m.toggle("off", fmt.Sprint(m.tag(i))), false, i)
			m.wantNew("off", i, ownOctet)
		}
	})
	m.passed(1)
	together := 10 // a slow machine takes long for each
	if full() {
		together = 1
	}
	m.took(fmt.Sprintf("on, %d at once", together), func() {
		for some := range slices.Chunk(m.everyone(), together) {
			list := fmt.Sprintf("%d-%d", m.tag(some[0]), m.tag(some[len(some)-1]))
			m.switched("on", m.toggle("on", list), true, some...)
			for _, i := range some {
				m.wantNew("on", i, vipOctet)
			}
		}
	})
	m.took("all at once, five times", func() {
		for range 5 {
			m.switched("all off", m.toggle("off", m.list()), false, m.everyone()...)
			m.switched("all on", m.toggle("on", m.list()), true, m.everyone()...)
		}
	})
	m.passed(2)
	m.unmoved(want)
	m.must(capture.Close())
	m.noStrays(capture)
	if lines := m.complaints(daemon); len(lines) > 0 {
		t.Errorf("vippin complained: %s", lines)
	}
}

// What the capture on the trunk is looked through for.
func TestStrays(t *testing.T) {
	m := &many{count: 200, scene: &scene{t: t}}
	inside, server := lab.HostEnds(0).V4, m.at(1, serverOctet)
	for _, test := range []struct {
		what     string
		tags     []uint16
		src, dst netip.Addr
		toRouter bool
		want     bool
	}{
		{"from the VIP", []uint16{1002}, m.at(1, vipOctet), server, false, false},
		{"from the router's own address", []uint16{1002}, m.at(1, ownOctet), server, false, false},
		{"an answer", []uint16{1002}, server, m.at(1, vipOctet), true, false},
		{"from an inside host, inside", []uint16{lab.LAN.Tag}, inside, server, true, false},
		{"to an inside host, inside", []uint16{lab.LAN.Tag}, server, inside, false, false},
		{"from an inside host, outside", []uint16{1002}, inside, server, false, true},
		{"from another VLAN's VIP", []uint16{1002}, m.at(2, vipOctet), server, false, true},
		{"to another VLAN's server", []uint16{1002}, m.at(1, vipOctet), m.at(2, serverOctet), false, true},
		{"outside by the inside VLAN", []uint16{lab.LAN.Tag}, m.at(1, vipOctet), server, false, true},
		{"a tag that nobody has", []uint16{1201}, m.at(200, vipOctet), m.at(200, serverOctet), false, true},
		{"no tag", nil, m.at(1, vipOctet), server, false, true},
		{"two tags", []uint16{lab.LAN.Tag, 1002}, m.at(1, vipOctet), server, false, true},
	} {
		frame := traffic.Frame{Outgoing: test.toRouter, Packet: taggedUDP(t, test.tags, test.src, test.dst)}
		if got := m.strays(frame); got != test.want {
			t.Errorf("%s: strays %t, want %t", test.what, got, test.want)
		}
	}
}

// taggedUDP is a datagram behind tags of 802.1Q.
func taggedUDP(t *testing.T, tags []uint16, src, dst netip.Addr) gopacket.Packet {
	t.Helper()
	proto := func(behind int) layers.EthernetType { // of what comes after so many tags
		if behind < len(tags) {
			return layers.EthernetTypeDot1Q
		}
		return layers.EthernetTypeIPv4
	}
	all := []gopacket.SerializableLayer{&layers.Ethernet{SrcMAC: make([]byte, 6), DstMAC: make([]byte, 6), EthernetType: proto(0)}}
	for i, id := range tags {
		all = append(all, &layers.Dot1Q{VLANIdentifier: id, Type: proto(i + 1)})
	}
	all = append(all, &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()},
		&layers.UDP{SrcPort: 4000, DstPort: serverPort})
	buffer := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true}, all...); err != nil {
		t.Fatal(err)
	}
	return gopacket.NewPacket(buffer.Bytes(), layers.LayerTypeEthernet, gopacket.Default)
}
