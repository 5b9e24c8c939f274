// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// packetKind is a protocol of which raw packets are sent.
type packetKind struct {
	name     string
	proto    uint8
	port     uint16 // on both sides; 0: it has none
	assemble func(text string) []byte
}

var packetKinds = []packetKind{
	{"GRE", unix.IPPROTO_GRE, 0, after("\x00\x00\x08\x00")},                 // RFC 2784: version 0, IPv4
	{"ESP", unix.IPPROTO_ESP, 0, after("\x00\x00\x10\x01\x00\x00\x00\x01")}, // RFC 4303: SPI, number
	{"253", 253, 0, after("")},                                              // RFC 3692
	{"SCTP", unix.IPPROTO_SCTP, 5000, sctpData},
}

func after(header string) func(string) []byte {
	return func(text string) []byte { return []byte(header + text) }
}

// sctpTag is the verification tag of both directions.
const sctpTag = 0x01020304

// sctp makes a packet with one chunk (RFC 9260 section 3).
func sctp(tag uint32, kind byte, value string) []byte {
	b := []byte{5000 >> 8, 5000 & 0xff, 5000 >> 8, 5000 & 0xff}
	b = binary.BigEndian.AppendUint32(b, tag)
	b = append(b, 0, 0, 0, 0, kind, 3)
	b = binary.BigEndian.AppendUint16(b, uint16(4+len(value)))
	b = append(b, value...)
	b = append(b, make([]byte, -len(b)&3)...)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func sctpData(text string) []byte { return sctp(sctpTag, 0, text) }

// raw opens a raw socket of a protocol.
func (s *space) raw(proto uint8, local netip.Addr) *net.IPConn {
	s.t.Helper()
	network := fmt.Sprintf("ip4:%d", proto)
	if local.Is6() {
		network = fmt.Sprintf("ip6:%d", proto)
	}
	var conn *net.IPConn
	s.do(func() (err error) {
		conn, err = net.ListenIP(network, &net.IPAddr{IP: local.AsSlice()})
		return err
	})
	s.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// pass sends a packet and returns from where the other end reads it.
func pass(t *testing.T, from, to *net.IPConn, dst netip.Addr, packet []byte) netip.Addr {
	t.Helper()
	if _, err := from.WriteToIP(packet, &net.IPAddr{IP: dst.AsSlice()}); err != nil {
		t.Fatal(err)
	}
	_ = to.SetReadDeadline(time.Now().Add(patience / 4))
	for b := make([]byte, 1500); ; {
		n, source, err := to.ReadFromIP(b)
		if err != nil {
			t.Fatalf("wait for % x: %v", packet, err)
		}
		if slices.Equal(b[:n], packet) {
			addr, _ := netip.AddrFromSlice(source.IP)
			return addr.Unmap()
		}
	}
}

// TestOtherProtocols reads the entries of protocols other than TCP, UDP and
// ICMP by either tuple, and puts native ones in their place that go on
// translating, to another address.
func TestOtherProtocols(t *testing.T) {
	l := newLab(t, "flush ruleset\ntable inet lab { chain post { type nat hook postrouting priority srcnat; oifname wan masquerade; }; }")
	for _, p := range pairs {
		for _, kind := range packetKinds {
			t.Run(p.name+" "+kind.name, func(t *testing.T) {
				client, server := l.client.raw(kind.proto, p.client), l.server.raw(kind.proto, p.server)
				if kind.proto == unix.IPPROTO_SCTP {
					associate(t, client, server, p.router, p.server)
				}
				if saw := pass(t, client, server, p.server, kind.assemble("there")); saw != p.router {
					t.Fatalf("server saw %v, want %v", saw, p.router)
				}
				pass(t, server, client, p.router, kind.assemble("back"))

				tuple := Tuple{Src: p.client, Dst: p.server, Proto: kind.proto, SrcPort: kind.port, DstPort: kind.port}
				flow := get(t, l.conn, tuple)
				reply := Tuple{Src: p.server, Dst: p.router, Proto: kind.proto, SrcPort: kind.port, DstPort: kind.port}
				if flow.Orig != tuple || flow.Reply != reply || flow.Status&(SrcNAT|SeenReply) != SrcNAT|SeenReply {
					t.Errorf("read %+v", flow)
				}
				if (flow.SCTP != nil) != (kind.proto == unix.IPPROTO_SCTP) {
					t.Errorf("SCTP state %+v", flow.SCTP)
				}
				if flow.SCTP != nil && (flow.SCTP.OrigTag != sctpTag || flow.SCTP.ReplyTag != sctpTag || flow.SCTP.State == 0) {
					t.Errorf("SCTP state %+v, want both tags %#x", flow.SCTP, sctpTag)
				}
				found, err := l.conn.GetBatch([]Tuple{reply, {Src: p.server, Dst: p.vip, Proto: kind.proto}})
				if err != nil || found[0] == nil || found[0].ID != flow.ID || found[1] != nil {
					t.Errorf("by the reply tuple found %+v, %v, want %+v", found, err, flow)
				}

				status := flow.Status
				if kind.proto == unix.IPPROTO_GRE {
					status |= FixedTimeout // see Entry.Status
				}
				results, err := l.conn.Replace([]Replacement{{Old: flow.Ref(), New: Entry{
					Orig: tuple, NATSrc: netip.AddrPortFrom(p.vip, kind.port), Timeout: time.Minute, Status: status, SCTP: flow.SCTP,
				}}})
				allNil(t, results, err)
				if saw := pass(t, client, server, p.server, kind.assemble("there again")); saw != p.vip {
					t.Errorf("server saw %v, want %v", saw, p.vip)
				}
				if saw := pass(t, server, client, p.vip, kind.assemble("back again")); saw != p.server {
					t.Errorf("client saw %v, want %v", saw, p.server)
				}
				reply.Dst = p.vip
				if native := get(t, l.conn, reply); native.Orig != tuple || native.Reply != reply {
					t.Errorf("native entry is %+v", native)
				}
			})
		}
	}
}

// associate shakes hands (RFC 9260 section 5.1), as far as conntrack looks.
func associate(t *testing.T, client, server *net.IPConn, router, to netip.Addr) {
	t.Helper()
	begin := "\x01\x02\x03\x04\x00\x01\x00\x00\x00\x01\x00\x01\x00\x00\x00\x01" // tag, window, streams, number
	pass(t, client, server, to, sctp(0, 1, begin))
	pass(t, server, client, router, sctp(sctpTag, 2, begin))
	pass(t, client, server, to, sctp(sctpTag, 10, "cookie"))
	pass(t, server, client, router, sctp(sctpTag, 11, ""))
}
