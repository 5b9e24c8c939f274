// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/binary"
	"errors"
	"syscall"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// acknowledgement is a TCP segment in the midst of a connection, from the server to
// the virtual address.
func acknowledgement(t *testing.T, sport, dport uint16) []byte {
	t.Helper()
	ip := &layers.IPv4{SrcIP: lab.ServerWAN.V4.AsSlice(), DstIP: vip.V4.AsSlice(), Protocol: layers.IPProtocolTCP}
	tcp := &layers.TCP{SrcPort: layers.TCPPort(sport), DstPort: layers.TCPPort(dport), Seq: 1000, Ack: 2000, ACK: true, Window: 1000}
	if err := tcp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	buffer := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{ComputeChecksums: true, FixLengths: true}, tcp); err != nil {
		t.Fatal(err)
	}
	return buffer.Bytes()
}

// A router takes over while the dead master's flows are still missing: it sends no
// RST from its VIP for them until sync.no_rst is over. What begins is answered as
// ever.
func TestNoRSTWhileFlowsAreMissing(t *testing.T) {
	t.Parallel()
	p := setPair(t, "norst", lab.Options{Hosts: 1}, "  no_rst: 3s\n")
	socket, err := traffic.OpenRaw(p.Server.Do, syscall.IPPROTO_TCP, lab.ServerWAN.V4, nil)
	p.must(err)
	t.Cleanup(func() { socket.Close() })
	resets := func(port uint16) int {
		return len(socket.Packets(func(packet traffic.RawPacket) bool {
			return packet.From == vip.V4 && len(packet.Payload) >= 20 && packet.Payload[13]&4 != 0 &&
				binary.BigEndian.Uint16(packet.Payload) == port
		}))
	}
	send := func(port uint16) {
		p.must(socket.Send(vip.V4, acknowledgement(t, serverPort, port)))
	}
	awaitReset := func(port uint16) {
		p.must(lab.Await(p.ctx, "a RST from the VIP", func() (bool, error) {
			send(port)
			return resets(port) > 0, nil
		}))
	}
	awaitReset(31000) // by ra, which lacks nothing

	p.must(p.daemons[p.RA].Signal(syscall.SIGSTOP)) // its flows will not come
	p.must(p.Reboot(p.ctx, p.RB))
	p.start(p.RB, p.config(p.RB, onWAN))
	_, err = p.StartKeepalived(p.RB, lab.Keepalived{})
	p.must(err)
	p.awaitRole(p.RB, policy.RoleBackup)
	p.must(lab.Await(p.ctx, "rb knowing that flows are missing", func() (bool, error) {
		_, _, exit := p.Vippin(p.RB, "ready")
		return exit == 1, nil
	}))
	p.must(p.Crash(p.RA))
	p.must(lab.Await(p.ctx, "the VIP on rb", func() (bool, error) {
		send(31001)
		return p.RB.Holds(vip.V4)
	}))
	if _, err := traffic.Dial(p.ctx, p.Server.Do, "tcp", lab.Port(lab.ServerWAN.V4, 0), lab.Port(vip.V4, 31001), patience); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a connection to a closed port: %v, want it refused", err)
	}
	p.must(lab.Await(p.ctx, "segments that are not answered", func() (bool, error) {
		send(31001)
		return p.status(p.RB).ResetsHeld > 3, nil
	}))
	if n := resets(31001); n > 1 { // the SYN's
		t.Errorf("%d RSTs left the VIP while flows are missing\n%s", n-1, p.Describe())
	}
	awaitReset(31002) // when the time is over
	held := p.status(p.RB).ResetsHeld
	if held == 0 {
		t.Error("the count went with the table")
	}
}
