// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"vippin/loader"
	"vippin/policy"
	"vippin/policy/vrrp"
	"vippin/test/lab"
)

// nftCounters reads the named counters of a node's table "seen".
func (s *scene) nftCounters(n *lab.Node) map[string]uint64 {
	s.t.Helper()
	out, err := n.Run(s.ctx, "nft", "-j", "list", "counters", "table", "inet", "seen")
	s.must(err)
	var list struct {
		NFTables []struct {
			Counter *struct {
				Name    string
				Packets uint64
			}
		}
	}
	s.must(json.Unmarshal([]byte(out), &list))
	counters := map[string]uint64{}
	for _, entry := range list.NFTables {
		if entry.Counter != nil {
			counters[entry.Counter.Name] = entry.Counter.Packets
		}
	}
	return counters
}

// countTags makes a router's firewall count the adverts it hears on the WAN
// after vippin, by family: all of them, and those with mark and priority.
func (s *scene) countTags(r *lab.Router) {
	s.t.Helper()
	var counters, rules strings.Builder
	for _, family := range []string{"ipv4", "ipv6"} {
		advert := fmt.Sprintf(`iifname { "wan0", "vrrp4.20", "vrrp6.20" } meta nfproto %s meta l4proto { 51, 112 }`, family)
		fmt.Fprintf(&counters, "counter all_%s {}\ncounter tagged_%s {}\n", family, family)
		fmt.Fprintf(&rules, "%s counter name all_%s\n", advert, family)
		fmt.Fprintf(&rules, "%s meta mark and 0xf0 == 0x70 meta priority 0:7 counter name tagged_%s\n", advert, family)
	}
	s.must(r.NFT(s.ctx, fmt.Sprintf(`
table inet seen
delete table inet seen
table inet seen {
	%s
	chain input {
		type filter hook input priority filter; policy accept;
		%s
	}
}
`, counters.String(), rules.String())))
}

// wantTags wants some adverts heard in each family, and every one tagged.
func (s *scene) wantTags(r *lab.Router, families ...string) {
	s.t.Helper()
	var seen map[string]uint64
	s.must(s.await("adverts in the firewall of "+r.Name, func() (bool, error) {
		seen = s.nftCounters(r.Node)
		for _, family := range families {
			if seen["all_"+family] < 2 {
				return false, nil
			}
		}
		return true, nil
	}))
	for _, family := range families {
		if seen["tagged_"+family] != seen["all_"+family] {
			s.t.Errorf("%s: of %d %s adverts the firewall saw %d tagged", r.Name, seen["all_"+family], family, seen["tagged_"+family])
		}
	}
}

// attachTC runs a tc program on the WAN interface of a router until the end of
// the test.
func (s *scene) attachTC(r *lab.Router, at ebpf.AttachType, anchor link.Anchor, code asm.Instructions) {
	s.t.Helper()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: code})
	s.must(err)
	s.t.Cleanup(func() { program.Close() })
	wan, err := r.Netlink().LinkByName(lab.WAN.Name)
	s.must(err)
	var attached link.Link
	s.must(r.Do(func() (err error) {
		attached, err = link.AttachTCX(link.TCXOptions{
			Interface: wan.Attrs().Index, Program: program, Attach: at, Anchor: anchor,
		})
		return err
	}))
	s.t.Cleanup(func() { attached.Close() })
}

// Offsets in struct __sk_buff (linux/bpf.h).
const (
	skbMark     = 8
	skbPriority = 32
	tcxNext     = -1
)

// setMark gives every packet a mark.
func setMark(mark int32) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Imm(asm.R2, mark),
		asm.StoreMem(asm.R1, skbMark, asm.R2, asm.Word),
		asm.Mov.Imm(asm.R0, tcxNext),
		asm.Return(),
	}
}

// countMarked counts the packets with this mark and priority in element 0.
func countMarked(counter *ebpf.Map, mark, priority int32) asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, skbMark, asm.Word),
		asm.JNE.Imm(asm.R2, mark, "next"),
		asm.LoadMem(asm.R2, asm.R1, skbPriority, asm.Word),
		asm.JNE.Imm(asm.R2, priority, "next"),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, counter.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "next"),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, tcxNext).WithSymbol("next"),
		asm.Return(),
	}
}

func (s *scene) newCounter() *ebpf.Map {
	s.t.Helper()
	counter, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	s.must(err)
	s.t.Cleanup(func() { counter.Close() })
	return counter
}

func (s *scene) awaitCount(counter *ebpf.Map, what string) {
	s.t.Helper()
	s.must(s.await(what, func() (bool, error) {
		var n uint64
		err := counter.Lookup(uint32(0), &n)
		return n >= 3, err
	}))
}

// Adverts carry mark and priority on their way in and out; bits of the mark
// outside the mask stay what somebody else made them.
func TestTagKeepsOtherBits(t *testing.T) {
	t.Parallel()
	s := setScene(t, "tagbits", lab.Options{Hosts: 1})
	s.must(s.StartRouters(s.ctx, lab.Keepalived{}))
	for _, r := range s.Routers() {
		s.start(r, onWAN)
	}

	// Out of ra: its firewall marks, vippin adds to it, another program sees both.
	s.must(s.RA.NFT(s.ctx, `
table inet marks {
	chain output {
		type filter hook output priority filter; policy accept;
		meta l4proto 112 meta mark set 0x3a5
	}
}
`))
	out := s.newCounter()
	s.attachTC(s.RA, ebpf.AttachTCXEgress, link.Tail(), countMarked(out, 0x375, 7))
	s.awaitCount(out, "adverts with 0x3a5 and the tag in one mark, leaving ra")

	// Into rb: another program marks before vippin, the firewall sees both.
	s.attachTC(s.RB, ebpf.AttachTCXIngress, link.Head(), setMark(0x3a5))
	s.must(s.RB.NFT(s.ctx, `
table inet seen {
	counter both {}
	chain input {
		type filter hook input priority filter; policy accept;
		iifname "wan0" meta l4proto 112 meta mark 0x375 meta priority 0:7 counter name both
	}
}
`))
	s.must(s.await("adverts with 0x3a5 and the tag in one mark, coming to rb", func() (bool, error) {
		return s.nftCounters(s.RB.Node)["both"] >= 3, nil
	}))
}

// A macvlan's lower device is where nftables sees what vippin tagged on the
// way out: its egress hook comes before tc's on the same device.
func TestNFTEgressSeesTheTag(t *testing.T) {
	t.Parallel()
	s := setScene(t, "nftegress", lab.Options{Hosts: 1, SingleRouter: true})
	_, err := s.StartKeepalived(s.RA, lab.Keepalived{VMAC: true})
	s.must(err)
	s.must(s.RA.AwaitMaster(s.ctx))
	s.start(s.RA, strings.Replace(onWAN, "[20]", `[20, "20@vrrp4.20"]`, 1))
	s.must(s.RA.NFT(s.ctx, `
table netdev seen {
	chain egress {
		type filter hook egress device "wan0" priority 0; policy accept;
		ip protocol 112 meta mark and 0xf0 == 0x70 meta priority 0:7 counter
	}
}
`))
	s.must(s.await("tagged adverts in the egress hook", func() (bool, error) {
		out, err := s.RA.Run(s.ctx, "nft", "list", "chain", "netdev", "seen", "egress")
		return err == nil && !strings.Contains(out, "packets 0 ") && strings.Contains(out, "packets "), err
	}))
}

// advertFrame is a VRRPv3 advert of the WAN's virtual router that keepalived
// takes for good if only the TTL is 255.
func (s *scene) advertFrame(src netip.Addr, ttl uint8) []byte {
	s.t.Helper()
	ether := &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 0x99}}
	advert := vrrp.Advert{
		Version: 3, VRID: lab.WAN.VRID, Priority: 254, Interval: advertInterval,
	}
	buffer := gopacket.NewSerializeBuffer()
	fix := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if src.Is4() {
		dst := netip.MustParseAddr("224.0.0.18")                                       // RFC 9568 section 5.1.1.2
		advert.VIPs, advert.Checksum = []netip.Addr{lab.WAN.VIP4}, vrrp.ChecksumPseudo // keepalived's
		payload, err := vrrp.Append(nil, advert, src, dst)
		s.must(err)
		ether.DstMAC, ether.EthernetType = net.HardwareAddr{1, 0, 0x5e, 0, 0, 18}, layers.EthernetTypeIPv4
		ip := &layers.IPv4{Version: 4, TTL: ttl, Protocol: layers.IPProtocolVRRP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
		s.must(gopacket.SerializeLayers(buffer, fix, ether, ip, gopacket.Payload(payload)))
		return buffer.Bytes()
	}
	dst := netip.MustParseAddr("ff02::12") // RFC 9568 section 5.1.2.2
	advert.VIPs = []netip.Addr{lab.WAN.VIPLL, lab.WAN.VIP6}
	payload, err := vrrp.Append(nil, advert, src, dst)
	s.must(err)
	ether.DstMAC, ether.EthernetType = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 0x12}, layers.EthernetTypeIPv6
	ip := &layers.IPv6{Version: 6, HopLimit: ttl, NextHeader: layers.IPProtocolVRRP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	s.must(gopacket.SerializeLayers(buffer, fix, ether, ip, gopacket.Payload(payload)))
	return buffer.Bytes()
}

// sendFrame sends a frame from a node's interface, count times.
func (s *scene) sendFrame(from *lab.Node, ifname string, frame []byte, count int) {
	s.t.Helper()
	dev, err := from.Netlink().LinkByName(ifname)
	s.must(err)
	s.must(from.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		to := &unix.SockaddrLinklayer{Ifindex: dev.Attrs().Index}
		to.Protocol = binary.NativeEndian.Uint16(frame[12:])
		for range count {
			if err := unix.Sendto(fd, frame, 0, to); err != nil {
				return err
			}
		}
		return nil
	}))
}

// ignored is how many adverts of the WAN's virtual router were not believed.
func (s *scene) ignored(r *lab.Router, family, reason string) uint64 {
	s.t.Helper()
	for _, vr := range s.vrrp(r) {
		if vr.Interface == lab.WAN.Name && vr.VRID == lab.WAN.VRID && vr.Family == family {
			return vr.Ignored[reason]
		}
	}
	return 0
}

// An advert with TTL 254 is counted, and goes on to keepalived untouched and
// untagged. That it would depose the master but for the TTL shows the last step.
func TestWrongTTL(t *testing.T) {
	t.Parallel()
	const count = 7
	s := setScene(t, "wrongttl", lab.Options{Hosts: 1})
	s.must(s.StartRouters(s.ctx, lab.Keepalived{}))
	for _, r := range s.Routers() {
		s.start(r, onWAN)
	}
	s.awaitPeace()
	far := map[string]netip.Addr{"ipv4": netip.MustParseAddr("198.51.100.200"), "ipv6": netip.MustParseAddr("fe80::99")}
	s.must(s.RA.NFT(s.ctx, fmt.Sprintf(`
table inet seen {
	counter far {}
	counter tagged {}
	chain input {
		type filter hook input priority filter; policy accept;
		ip saddr %[1]s ip ttl 254 counter name far
		ip6 saddr %[2]s ip6 hoplimit 254 counter name far
		ip saddr %[1]s meta mark != 0 counter name tagged
		ip6 saddr %[2]s meta mark != 0 counter name tagged
	}
}
`, far["ipv4"], far["ipv6"])))
	for _, src := range far {
		s.sendFrame(s.Server, "eth0", s.advertFrame(src, 254), count)
	}
	for _, r := range s.Routers() {
		for family := range far {
			s.must(s.await(family+" adverts counted on "+r.Name, func() (bool, error) {
				return s.ignored(r, family, "ttl") >= count, nil
			}))
			if n := s.ignored(r, family, "ttl"); n != count {
				t.Errorf("%s ignored %d %s adverts for their TTL, want %d", r.Name, n, family, count)
			}
		}
		plane, err := loader.Open(r.BPFFS)
		s.must(err)
		counters, err := plane.VRRPCounters()
		s.must(err)
		s.must(plane.Close())
		if counters["ttl"] != 2*count || counters["valid"] == 0 {
			t.Errorf("%s: the programs counted %v, want %d wrong TTLs", r.Name, counters, 2*count)
		}
	}
	if seen := s.nftCounters(s.RA.Node); seen["far"] != 2*count || seen["tagged"] != 0 {
		t.Errorf("the firewall saw %v, want %d untagged ones", seen, 2*count)
	}
	s.must(s.await("keepalived's own complaints", func() (bool, error) {
		return strings.Count(s.RA.Keepalived().Log(), "Received 254") >= 2*count, nil
	}))
	for _, vr := range s.vrrp(s.RA) {
		for _, other := range vr.Routers {
			if other.Priority == 254 {
				t.Errorf("VRID %d (%s) lists the router with the wrong TTL: %+v", vr.VRID, vr.Family, other)
			}
		}
	}
	if every, _, err := s.RA.IsMaster(); err != nil || !every {
		t.Errorf("ra is no longer MASTER (%v)", err)
	}
	s.awaitPeace()

	s.sendFrame(s.Server, "eth0", s.advertFrame(far["ipv4"], 255), 1)
	s.must(s.RA.AwaitBackup(s.ctx))
	s.awaitRole(s.RA, policy.RoleBackup)
}
