// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/mdlayher/netlink"
	vishvananda "github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// TCP is played by hand, by hosts that have no kernel to answer for them: every
// segment is told apart.

const (
	tcpRST = 0x04
	tcpPSH = 0x08
)

// port sends and receives frames at the far end of a cable.
type port struct {
	fd       int
	mac, far net.HardwareAddr // its own, the router's
	to       net.HardwareAddr // where it sends to; the router's, or a virtual one
}

func openPort(t *testing.T, ns netns.NsHandle, far int) *port {
	t.Helper()
	router, err := vishvananda.LinkByIndex(far)
	mustDo(t, err)
	p := &port{far: router.Attrs().HardwareAddr, to: router.Attrs().HardwareAddr}
	mustDo(t, inside(ns, func() error {
		peer, err := vishvananda.LinkByName("peer")
		if err != nil {
			return err
		}
		p.mac = peer.Attrs().HardwareAddr
		all := int(be16(unix.ETH_P_ALL))
		if p.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, all); err != nil {
			return err
		}
		return unix.Bind(p.fd, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: peer.Attrs().Index})
	}))
	t.Cleanup(func() { _ = unix.Close(p.fd) })
	return p
}

// connection is a TCP connection of a host 198.18.1.11 to a server 198.51.100.11.
type connection struct {
	inside, outside *port
	client, server  netip.AddrPort
	wire            netip.AddrPort // the client, as the server sees it
	seqOut, seqBack uint32
}

type tcpSegment struct {
	flags uint8
	out   bool
	jump  uint32 // octets of its sequence number that nobody saw
}

func (l *learnLab) connection(t *testing.T, ipv6 bool, sport uint16) *connection {
	t.Helper()
	client, server := netip.MustParseAddr("198.18.1.11"), netip.MustParseAddr("198.51.100.11")
	if ipv6 {
		client, server = netip.MustParseAddr("2001:db8:18::11"), netip.MustParseAddr("2001:db8:1::11")
	}
	c := &connection{
		inside: openPort(t, l.lan, l.lan0), outside: openPort(t, l.wan, l.wan0),
		client: netip.AddrPortFrom(client, sport), server: netip.AddrPortFrom(server, 443), wire: netip.AddrPortFrom(vip(ipv6), sport),
		seqOut: 0x10000000, seqBack: 0xf0000000,
	}
	if l.virtual != nil {
		c.inside.to, c.outside.to = routersMAC(ipv6), routersMAC(ipv6)
	}
	for _, n := range []struct {
		ifindex int
		addr    netip.Addr
		mac     net.HardwareAddr
	}{{l.lan0, client, c.inside.mac}, {l.out, server, c.outside.mac}} {
		mustDo(t, vishvananda.NeighSet(&vishvananda.Neigh{
			LinkIndex: n.ifindex, IP: n.addr.AsSlice(), HardwareAddr: n.mac, State: vishvananda.NUD_PERMANENT,
		}))
	}
	return c
}

// send passes a segment through the router, and wants it at the other end as it is
// to be there, with a right checksum.
func (c *connection) send(t *testing.T, s tcpSegment) {
	t.Helper()
	from, to, src, dst, wantSrc, wantDst := c.inside, c.outside, c.client, c.server, c.wire, c.server
	seq, ack := &c.seqOut, &c.seqBack
	if !s.out {
		from, to, src, dst, wantSrc, wantDst = c.outside, c.inside, c.server, c.wire, c.server, c.client
		seq, ack = &c.seqBack, &c.seqOut
	}
	*seq += s.jump
	payload := []byte("some octets")
	if s.flags&(tcpSYN|tcpFIN|tcpRST) != 0 {
		payload = nil
	}
	tcp := layers.TCP{
		SrcPort: layers.TCPPort(src.Port()), DstPort: layers.TCPPort(dst.Port()), Seq: *seq, Window: 5000,
		SYN: s.flags&tcpSYN != 0, ACK: s.flags&tcpACK != 0, FIN: s.flags&tcpFIN != 0, RST: s.flags&tcpRST != 0,
		PSH: payload != nil,
	}
	if tcp.ACK {
		tcp.Ack = *ack
	}
	if s.flags&(tcpSYN|tcpFIN) != 0 {
		*seq++
	}
	*seq += uint32(len(payload))
	mustDo(t, unix.Send(from.fd, c.frame(t, from, src, dst, &tcp, payload, 64), 0))
	tcp.SrcPort, tcp.DstPort = layers.TCPPort(wantSrc.Port()), layers.TCPPort(wantDst.Port())
	want := c.frame(t, to, wantSrc, wantDst, &tcp, payload, 63)
	copy(want, to.mac) // it arrives there
	copy(want[6:], to.far)
	got := to.await(t, tcp.Seq)
	sameBytes(t, fmt.Sprintf("segment %+v", s), got, want)
}

func (c *connection) frame(t *testing.T, p *port, src, dst netip.AddrPort, tcp *layers.TCP, payload []byte, ttl uint8) []byte {
	t.Helper()
	link := append(append([]byte{}, p.to...), p.mac...)
	if src.Addr().Is4() {
		ip := &layers.IPv4{
			Version: 4, TTL: ttl, Protocol: layers.IPProtocolTCP, Id: 0x4711, Flags: layers.IPv4DontFragment,
			SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice(),
		}
		mustNetwork(t, tcp.SetNetworkLayerForChecksum(ip))
		return append(append(link, 0x08, 0x00), serialize(t, ip, tcp, gopacket.Payload(payload))...)
	}
	ip := &layers.IPv6{
		Version: 6, HopLimit: ttl, NextHeader: layers.IPProtocolTCP, TrafficClass: 8, FlowLabel: 0x4711,
		SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice(),
	}
	mustNetwork(t, tcp.SetNetworkLayerForChecksum(ip))
	return append(append(link, 0x86, 0xdd), serialize(t, ip, tcp, gopacket.Payload(payload))...)
}

// await reads until the segment comes that has this sequence number.
func (p *port) await(t *testing.T, seq uint32) []byte {
	t.Helper()
	b := make([]byte, 2048)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		mustDo(t, unix.SetsockoptTimeval(p.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}))
		n, from, err := unix.Recvfrom(p.fd, b, 0)
		if errors.Is(err, unix.EAGAIN) {
			continue
		}
		mustDo(t, err)
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		packet := gopacket.NewPacket(b[:n], layers.LayerTypeEthernet, gopacket.Default)
		if tcp, ok := packet.Layer(layers.LayerTypeTCP).(*layers.TCP); ok && tcp.Seq == seq {
			return b[:n]
		}
	}
	t.Fatalf("no segment with sequence number %#x came", seq)
	return nil
}

func (c *connection) out(t *testing.T)  { t.Helper(); c.send(t, tcpSegment{flags: tcpACK, out: true}) }
func (c *connection) back(t *testing.T) { t.Helper(); c.send(t, tcpSegment{flags: tcpACK}) }

// handshake leaves two packets that were refused for their flags, and one since
// the connection is not liberal.
func (c *connection) handshake(t *testing.T) {
	t.Helper()
	c.send(t, tcpSegment{flags: tcpSYN, out: true})
	c.send(t, tcpSegment{flags: tcpSYN | tcpACK})
	c.out(t)
}

// loosen makes conntrack take segments of any sequence number, as user space is asked to.
func (c *connection) loosen(t *testing.T) {
	t.Helper()
	const (
		tupleOrig, protoInfo          = 1, 4
		ip, proto                     = 1, 2
		protoNum, srcPort, dstPort    = 1, 2, 3
		tcpInfo, flagsOrig, flagsBack = 1, 4, 5
		nested                        = unix.NLA_F_NESTED
	)
	src, dst, family := uint16(1), uint16(2), uint8(unix.AF_INET)
	if c.client.Addr().Is6() {
		src, dst, family = 3, 4, unix.AF_INET6
	}
	e := netlink.NewAttributeEncoder()
	e.ByteOrder = binary.BigEndian
	e.Nested(tupleOrig|nested, func(e *netlink.AttributeEncoder) error {
		e.Nested(ip|nested, func(e *netlink.AttributeEncoder) error {
			e.Bytes(src, c.client.Addr().AsSlice())
			e.Bytes(dst, c.server.Addr().AsSlice())
			return nil
		})
		e.Nested(proto|nested, func(e *netlink.AttributeEncoder) error {
			e.Uint8(protoNum, unix.IPPROTO_TCP)
			e.Uint16(srcPort, c.client.Port())
			e.Uint16(dstPort, c.server.Port())
			return nil
		})
		return nil
	})
	e.Nested(protoInfo|nested, func(e *netlink.AttributeEncoder) error {
		e.Nested(tcpInfo|nested, func(e *netlink.AttributeEncoder) error {
			e.Bytes(flagsOrig, []byte{0x08, 0x28}) // value, mask
			e.Bytes(flagsBack, []byte{0x08, 0x28})
			return nil
		})
		return nil
	})
	attributes, err := e.Encode()
	mustDo(t, err)
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	mustDo(t, err)
	defer func() { _ = conn.Close() }()
	_, err = conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_CTNETLINK << 8, Flags: netlink.Request | netlink.Acknowledge},
		Data:   append([]byte{family, 0, 0, 0}, attributes...),
	})
	mustDo(t, err)
}
