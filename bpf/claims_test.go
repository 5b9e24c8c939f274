// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// claimantMAC is what the claim says; the frame itself comes from otherMAC.
var claimantMAC = net.HardwareAddr{0x02, 0, 0, 0, 0, 0x44}

// arpFrame is an ARP packet on the wire, to be changed before use.
type arpFrame struct {
	layers.ARP
	tags []tag
}

func gratuitousARP() arpFrame {
	return arpFrame{ARP: layers.ARP{
		AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
		Operation: layers.ARPRequest, SourceHwAddress: claimantMAC, SourceProtAddress: vip4.AsSlice(),
		DstHwAddress: make([]byte, 6), DstProtAddress: vip4.AsSlice(),
	}}
}

func (f arpFrame) bytes(t *testing.T) []byte {
	t.Helper()
	b := append(bytes.Repeat([]byte{0xff}, 6), otherMAC...)
	for _, tag := range f.tags {
		b = binary.BigEndian.AppendUint16(b, tag.ethertype)
		b = binary.BigEndian.AppendUint16(b, tag.id)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(layers.EthernetTypeARP))
	b = append(b, serialize(t, &f.ARP)...)
	return append(b, make([]byte, max(0, 60-len(b)))...) // as short Ethernet frames are padded
}

// naFrame is a neighbour advertisement on the wire.
type naFrame struct {
	kind, code uint8
	flags      uint8 // router, solicited, override from the top
	target     netip.Addr
	options    layers.ICMPv6Options
	hopLimit   uint8
	ext        []extension
	tags       []tag
}

func unsolicitedNA() naFrame {
	return naFrame{
		kind: layers.ICMPv6TypeNeighborAdvertisement, flags: 0xa0, target: vip6, hopLimit: 255,
		options: layers.ICMPv6Options{{Type: layers.ICMPv6OptTargetAddress, Data: claimantMAC}},
	}
}

func (f naFrame) bytes(t *testing.T) []byte {
	t.Helper()
	ip := &layers.IPv6{Version: 6, HopLimit: f.hopLimit, SrcIP: linkLocal6.AsSlice(), DstIP: net.IPv6linklocalallnodes}
	head := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(f.kind, f.code)}
	mustNetwork(t, head.SetNetworkLayerForChecksum(ip))
	na := &layers.ICMPv6NeighborAdvertisement{Flags: f.flags, TargetAddress: f.target.AsSlice(), Options: f.options}
	payload := frame{src: netip.AddrPortFrom(linkLocal6, 0), proto: layers.IPProtocolICMPv6, ext: f.ext}.chain(ip, serialize(t, head, na))
	b := append(bytes.Repeat([]byte{0x33}, 6), otherMAC...)
	for _, tag := range f.tags {
		b = binary.BigEndian.AppendUint16(b, tag.ethertype)
		b = binary.BigEndian.AppendUint16(b, tag.id)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(layers.EthernetTypeIPv6))
	return append(b, serialize(t, ip, gopacket.Payload(payload))...)
}

// claimReader reads the ring of claims, and has emptied it.
func (d *dataplane) claimReader(t *testing.T) *ringbuf.Reader {
	t.Helper()
	ring, err := ringbuf.NewReader(d.Claims)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ring.Close(); err != nil {
			t.Error(err)
		}
	})
	takeClaims(t, ring)
	return ring
}

func takeClaims(t *testing.T, ring *ringbuf.Reader) (all []DataplaneClaim) {
	t.Helper()
	ring.SetDeadline(time.Now().Add(-time.Second))
	for {
		raw, err := ring.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		var c DataplaneClaim
		if n, err := binary.Decode(raw.RawSample, binary.NativeEndian, &c); err != nil || n != len(raw.RawSample) {
			t.Fatalf("record of %d octets, %d decoded: %v", len(raw.RawSample), n, err)
		}
		all = append(all, c)
	}
}

// expectClaim runs a frame; want nil: nobody is told anything. The frame passes
// as it is, whatever it is.
func (d *dataplane) expectClaim(t *testing.T, prog *ebpf.Program, ring *ringbuf.Reader, b []byte, want *DataplaneClaim) {
	t.Helper()
	d.forget(t)
	before := monotonicNow(t)
	got := run(t, prog, b, marked, checksumComplete)
	after := monotonicNow(t)
	if got.action != actUnspec || got.skb.Mark != marked.Mark || got.skb.Priority != marked.Priority {
		t.Errorf("action %d, mark %#x, priority %d", int32(got.action), got.skb.Mark, got.skb.Priority)
	}
	sameBytes(t, "frame", got.frame, b)
	counted := map[DataplaneVrrpCounter]uint64{}
	if want != nil {
		counted[DataplaneVrrpCounterVRRP_CLAIMS] = 1
	}
	sameCounts(t, "vrrp", d.vrrpCounts(t), counted)
	claims := takeClaims(t, ring)
	switch {
	case want == nil && len(claims) > 0:
		t.Errorf("told %+v", claims)
	case want == nil:
	case len(claims) != 1:
		t.Errorf("%d claims, want 1", len(claims))
	default:
		if c := claims[0]; c.TimeNs < before || c.TimeNs > after {
			t.Errorf("time %d, want between %d and %d", c.TimeNs, before, after)
		}
		claims[0].TimeNs = 0
		if claims[0] != *want {
			t.Errorf("told %+v, want %+v", claims[0], *want)
		}
	}
}

func claimOf(vip netip.Addr, mac net.HardwareAddr, kind DataplaneClaimKind) *DataplaneClaim {
	c := &DataplaneClaim{Ifindex: loopback, Mac: [6]uint8(mac), Kind: kind}
	c.Vip.Word = words(vip)
	return c
}

func TestARPClaims(t *testing.T) {
	d := newDataplane(t)
	ring := d.claimReader(t)
	zero := make([]byte, 4)
	owns := claimOf(vip4, claimantMAC, DataplaneClaimKindCLAIM_OWNS)
	for _, c := range []struct {
		name   string
		mutate func(f *arpFrame)
		want   *DataplaneClaim
	}{
		{"gratuitous request", func(*arpFrame) {}, owns},
		{"gratuitous reply", func(f *arpFrame) { f.Operation = layers.ARPReply }, owns},
		{"reply to us", func(f *arpFrame) { f.Operation, f.DstProtAddress = layers.ARPReply, unique4.AsSlice() }, owns},
		{"request of the VIP's owner", func(f *arpFrame) { f.DstProtAddress = remote4.AsSlice() }, owns},
		{"priority tag", func(f *arpFrame) { f.tags = []tag{{0x8100, 0xe000}} }, owns},
		{"reply to a probe", func(f *arpFrame) { f.Operation, f.DstProtAddress = layers.ARPReply, zero },
			claimOf(vip4, claimantMAC, DataplaneClaimKindCLAIM_ANSWERS)},
		{"request for 0.0.0.0", func(f *arpFrame) { f.DstProtAddress = zero }, owns},
		{"probe", func(f *arpFrame) { f.SourceProtAddress = zero }, claimOf(vip4, claimantMAC, DataplaneClaimKindCLAIM_PROBE)},
		{"reply from 0.0.0.0", func(f *arpFrame) { f.Operation, f.SourceProtAddress = layers.ARPReply, zero }, nil},
		{"probe for another address", func(f *arpFrame) { f.SourceProtAddress, f.DstProtAddress = zero, unique4.AsSlice() }, nil},
		{"question for the VIP", func(f *arpFrame) { f.SourceProtAddress = remote4.AsSlice() }, nil},
		{"unique address", func(f *arpFrame) { f.SourceProtAddress, f.DstProtAddress = unique4.AsSlice(), unique4.AsSlice() }, nil},
		{"VLAN tag", func(f *arpFrame) { f.tags = []tag{{0x8100, 5}} }, nil},
		{"two tags", func(f *arpFrame) { f.tags = []tag{{0x88a8, 5}, {0x8100, 6}} }, nil},
		{"other hardware", func(f *arpFrame) { f.AddrType = 6 }, nil},
		{"other protocol", func(f *arpFrame) { f.Protocol = layers.EthernetTypeIPv6 }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := gratuitousARP()
			c.mutate(&f)
			d.expectClaim(t, d.VippinIngress, ring, f.bytes(t), c.want)
			d.expectClaim(t, d.VippinEgress, ring, f.bytes(t), nil)
		})
	}
	t.Run("cut short", func(t *testing.T) {
		d.expectClaim(t, d.VippinIngress, ring, gratuitousARP().bytes(t)[:etherHeader+27], nil)
	})
}

func TestNeighbourClaims(t *testing.T) {
	d := newDataplane(t)
	ring := d.claimReader(t)
	owns := claimOf(vip6, claimantMAC, DataplaneClaimKindCLAIM_OWNS)
	ofFrame := claimOf(vip6, otherMAC, DataplaneClaimKindCLAIM_OWNS)
	for _, c := range []struct {
		name   string
		mutate func(f *naFrame)
		want   *DataplaneClaim
	}{
		{"unsolicited", func(*naFrame) {}, owns},
		{"solicited", func(f *naFrame) { f.flags = 0x60 }, claimOf(vip6, claimantMAC, DataplaneClaimKindCLAIM_ANSWERS)},
		{"behind options", func(f *naFrame) { f.ext = []extension{destinationOpt} }, owns},
		{"atomic fragment", func(f *naFrame) { f.ext = []extension{atomicFragment} }, owns},
		{"without option", func(f *naFrame) { f.options = nil }, ofFrame},
		{"another option", func(f *naFrame) { f.options[0].Type = layers.ICMPv6OptSourceAddress }, ofFrame},
		{"a longer option", func(f *naFrame) { f.options[0].Data = append(bytes.Clone(claimantMAC), make([]byte, 8)...) }, ofFrame},
		{"forwarded", func(f *naFrame) { f.hopLimit = 254 }, nil},
		{"fragment (RFC 6980)", func(f *naFrame) { f.ext = []extension{firstFragment} }, nil},
		{"unique address", func(f *naFrame) { f.target = unique6 }, nil},
		{"solicitation", func(f *naFrame) { f.kind = layers.ICMPv6TypeNeighborSolicitation }, nil},
		{"code 1", func(f *naFrame) { f.code = 1 }, nil},
		{"VLAN tag", func(f *naFrame) { f.tags = []tag{{0x8100, 5}} }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := unsolicitedNA()
			c.mutate(&f)
			d.expectClaim(t, d.VippinIngress, ring, f.bytes(t), c.want)
			d.expectClaim(t, d.VippinEgress, ring, f.bytes(t), nil)
		})
	}
}

// Where nothing is pinned, nothing is told.
func TestClaimsElsewhere(t *testing.T) {
	d := newDataplane(t)
	ring := d.claimReader(t)
	for name, iface := range map[string]DataplaneIface{
		"only VRRP is watched": {HasL2: 1}, "another interface's VIPs": {Slot: slot + 1, HasL2: 1},
	} {
		put(t, d.Ifaces, uint32(loopback), iface)
		t.Run(name, func(t *testing.T) {
			d.expectClaim(t, d.VippinIngress, ring, gratuitousARP().bytes(t), nil)
			d.expectClaim(t, d.VippinIngress, ring, unsolicitedNA().bytes(t), nil)
		})
	}
}

// A full ring is counted, and the packet passes.
func TestClaimRingFull(t *testing.T) {
	d := newDataplane(t)
	ring := d.claimReader(t)
	d.forget(t)
	b := gratuitousARP().bytes(t)
	const record = 8 + 40 // the ring's own header, and a claim
	room := d.Claims.MaxEntries()/record + 1
	for range room + 3 {
		if got := run(t, d.VippinIngress, b, skBuff{}, checksumNone); got.action != actUnspec || !bytes.Equal(got.frame, b) {
			t.Fatal("the frame did not pass as it is")
		}
	}
	got := d.vrrpCounts(t)
	full := got[DataplaneVrrpCounterVRRP_RING_FULL]
	if got[DataplaneVrrpCounterVRRP_CLAIMS] != uint64(room+3) || full < 3 || full > 5 {
		t.Errorf("counted %v of %d", got, room+3)
	}
	if n := len(takeClaims(t, ring)); uint64(n) != uint64(room+3)-full {
		t.Errorf("%d claims told, %d not, of %d", n, full, room+3)
	}
}
