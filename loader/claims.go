// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/mdlayher/ndp"
	"golang.org/x/sys/unix"

	"vippin/bpf"
	"vippin/policy"
)

// Claims hands everything that others say of VIPs (ARP, neighbour
// advertisements) to handle, in order, until ctx ends; then it returns nil. As
// with Adverts, there is one ring buffer for one reader.
func (d *Dataplane) Claims(ctx context.Context, handle func(policy.ClaimSeen) error) error {
	return readRing(ctx, d.maps.Claims, "claims of VIPs", decodeClaim, handle)
}

// decodeClaim reads one record, struct claim.
func decodeClaim(record []byte) (policy.ClaimSeen, error) {
	var c bpf.DataplaneClaim
	if _, err := binary.Decode(record, binary.NativeEndian, &c); err != nil {
		return policy.ClaimSeen{}, fmt.Errorf("decode a record of %d octets: %w", len(record), err)
	}
	return policy.ClaimSeen{
		Time: time.Duration(c.TimeNs), Ifindex: int(c.Ifindex), VIP: wordsAddr(c.Vip.Word), MAC: c.Mac,
		Kind: policy.ClaimKind(c.Kind),
	}, nil
}

// Prober asks the network who has a VIP. It is used by one goroutine.
type Prober struct {
	fd int // an AF_PACKET socket for all interfaces, which receives nothing
}

// NewProber opens the prober's socket in the network namespace of the calling
// thread.
func NewProber() (*Prober, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open a socket to ask for VIPs (it needs CAP_NET_RAW): %w", err)
	}
	return &Prober{fd: fd}, nil
}

// Close closes the socket.
func (p *Prober) Close() error { return unix.Close(p.fd) }

// Probe sends one question and does not wait, neither for room nor for the
// answer, which comes in as a claim. Nobody who hears it changes what he knows
// of the VIP: it is an ARP probe, which names no sender (RFC 5227 section
// 2.1.1), or a neighbour solicitation from an address of our own. (One without
// sender would make a router give up a VIP that it is just taking: RFC 4862
// section 5.4.3.)
func (p *Prober) Probe(probe policy.Probe) error {
	to, protocol, question, err := ask(probe)
	if err == nil {
		addr := &unix.SockaddrLinklayer{Protocol: swapPort(protocol), Ifindex: probe.Ifindex, Halen: uint8(len(to))}
		copy(addr.Addr[:], to[:])
		err = unix.Sendto(p.fd, question, unix.MSG_DONTWAIT, addr)
	}
	if err != nil {
		return fmt.Errorf("ask on interface %d who has %s: %w", probe.Ifindex, probe.VIP, err)
	}
	return nil
}

// ask makes a question, to be put behind an Ethernet header.
func ask(probe policy.Probe) (to policy.MAC, protocol uint16, question []byte, err error) {
	if probe.VIP.Is4() {
		for i := range to {
			to[i] = 0xff
		}
		return to, unix.ETH_P_ARP, askARP(probe.MAC, probe.VIP), nil
	}
	group, err := ndp.SolicitedNodeMulticast(probe.VIP)
	if err != nil {
		return to, 0, nil, err
	}
	octets := group.As16()
	to = policy.MAC{0x33, 0x33, octets[12], octets[13], octets[14], octets[15]} // RFC 2464 section 7
	question, err = askNeighbour(probe.MAC, probe.From, group, probe.VIP)
	return to, unix.ETH_P_IPV6, question, err
}

// askARP makes the ARP packet (RFC 826) by hand: mdlayher/arp does not build
// beside the mdlayher/socket that conntrack needs.
func askARP(mac policy.MAC, vip netip.Addr) []byte {
	const ethernet, request = 1, 1
	p := binary.BigEndian.AppendUint16(nil, ethernet)
	p = binary.BigEndian.AppendUint16(p, unix.ETH_P_IP)
	p = append(p, byte(len(mac)), 4)
	p = binary.BigEndian.AppendUint16(p, request)
	p = append(append(p, mac[:]...), 0, 0, 0, 0)
	p = append(p, make([]byte, len(mac))...)
	return append(p, vip.AsSlice()...)
}

// askNeighbour makes the IPv6 packet of RFC 4861 section 4.3.
func askNeighbour(mac policy.MAC, from, group, vip netip.Addr) ([]byte, error) {
	if !from.Is6() {
		return nil, fmt.Errorf("the interface has no IPv6 address of its own to ask from")
	}
	message, err := ndp.MarshalMessageChecksum(&ndp.NeighborSolicitation{
		TargetAddress: vip,
		Options:       []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: mac[:]}},
	}, from, group)
	if err != nil {
		return nil, err
	}
	packet := []byte{6 << 4, 0, 0, 0}
	packet = binary.BigEndian.AppendUint16(packet, uint16(len(message)))
	packet = append(packet, unix.IPPROTO_ICMPV6, ndp.HopLimit)
	packet = append(append(packet, from.AsSlice()...), group.AsSlice()...)
	return append(packet, message...), nil
}
