// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"maps"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// talk is a UDP flow, one datagram at a time. With outer it begins outside.
type talk struct {
	client *net.UDPConn
	server *net.UDPConn
	from   netip.AddrPort // as the server saw it last
}

// newTalk: what the client sends to dialed comes to the server at its address.
func newTalk(t *testing.T, clientIn, serverIn netns.NsHandle, client, dialed, server netip.AddrPort) *talk {
	t.Helper()
	k := &talk{}
	mustDo(t, inside(serverIn, func() (err error) {
		k.server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(server))
		return err
	}))
	t.Cleanup(func() { _ = k.server.Close() })
	mustDo(t, inside(clientIn, func() (err error) {
		k.client, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(client), net.UDPAddrFromAddrPort(dialed))
		return err
	}))
	t.Cleanup(func() { _ = k.client.Close() })
	return k
}

// talk is one from the host's port to the server.
func (l *learnLab) talk(t *testing.T, ipv6 bool, port uint16) *talk {
	t.Helper()
	host, server := ends(ipv6)
	to := netip.AddrPortFrom(server, port+1)
	return newTalk(t, l.lan, l.wan, netip.AddrPortFrom(host, port), to, to)
}

func ends(ipv6 bool) (host, server netip.Addr) {
	if ipv6 {
		return host6, server6
	}
	return host4, server4
}

// out sends to the server and returns whom it came from.
func (k *talk) out(t *testing.T) netip.AddrPort {
	t.Helper()
	return k.send(t, "out")
}

func (k *talk) send(t *testing.T, text string) netip.AddrPort {
	t.Helper()
	b := make([]byte, 65536)
	_, err := k.client.Write([]byte(text))
	mustDo(t, err, k.server.SetReadDeadline(time.Now().Add(patience)))
	n, from, err := k.server.ReadFromUDPAddrPort(b)
	mustDo(t, err)
	if string(b[:n]) != text {
		t.Errorf("the server got %q", b[:n])
	}
	k.from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	return k.from
}

// back answers.
func (k *talk) back(t *testing.T) {
	t.Helper()
	b := make([]byte, 100)
	_, err := k.server.WriteToUDPAddrPort([]byte("back"), k.from)
	mustDo(t, err, k.client.SetReadDeadline(time.Now().Add(patience)))
	n, err := k.client.Read(b)
	mustDo(t, err)
	if string(b[:n]) != "back" {
		t.Errorf("the client got %q", b[:n])
	}
}

// outcome is what becomes of packets.
type outcome struct {
	forwarded, learnt, notLearnt uint64
	refused                      map[FastpathFastRefusal]uint64
}

func refused(by FastpathFastRefusal) outcome {
	return outcome{refused: map[FastpathFastRefusal]uint64{by: 1}}
}

var (
	forwardedOne = outcome{forwarded: 1}
	learntOne    = outcome{learnt: 1}
	untold       = outcome{} // neither forwarded nor judged
)

// outcome returns and clears what was counted.
func (l *learnLab) outcome(t *testing.T) outcome {
	t.Helper()
	exits := l.exits(t)
	return outcome{
		exits[FastpathFastExitFAST_FORWARDED], exits[FastpathFastExitFAST_LEARNT], exits[FastpathFastExitFAST_NOT_LEARNT], l.refusals(t),
	}
}

// expect wants a packet to have that outcome, and one reason if it was not learnt.
func (l *learnLab) expect(t *testing.T, what string, want outcome, packet func()) {
	t.Helper()
	l.outcome(t)
	packet()
	got := l.outcome(t)
	if got.forwarded != want.forwarded || got.learnt != want.learnt || !maps.Equal(got.refused, want.refused) {
		t.Errorf("%s: %+v, want %+v", what, got, want)
	}
	refused := uint64(0)
	for _, n := range got.refused {
		refused += n
	}
	if got.notLearnt != refused {
		t.Errorf("%s: %d packets not learnt, %d refused", what, got.notLearnt, refused)
	}
}

// entry is either family's.
type entry struct {
	src, dst, newSrc, newDst netip.AddrPort
	place                    uint32
	fate                     FastpathFastFate
	write                    func(FastpathFastFate)
}

// entries are those in use, the client's direction of a talk from inside first.
func (l *learnLab) entries(t *testing.T) (all []entry) {
	t.Helper()
	for i := range uint32(fastBuckets) {
		var b4 FastpathFast4Bucket
		var b6 FastpathFast6Bucket
		mustDo(t, l.fast.Fast4.Lookup(i, &b4), l.fast.Fast6.Lookup(i, &b6))
		for w, e := range b4.Way {
			src, dst := pairOf(e.Addrs, e.Ports)
			newSrc, newDst := pairOf(e.NewAddrs, e.Fate.NewPorts)
			all = append(all, entry{src, dst, newSrc, newDst, e.Place, e.Fate, func(fate FastpathFastFate) {
				b4.Way[w].Fate = fate
				put(t, l.fast.Fast4, i, b4)
			}})
		}
		for w, e := range b6.Way {
			src, dst := portsOf(e.Ports)
			newSrc, newDst := portsOf(e.Fate.NewPorts)
			all = append(all, entry{
				netip.AddrPortFrom(addrOf(e.Src.Word), src), netip.AddrPortFrom(addrOf(e.Dst.Word), dst),
				netip.AddrPortFrom(addrOf(e.NewSrc.Word), newSrc), netip.AddrPortFrom(addrOf(e.NewDst.Word), newDst),
				e.Place, e.Fate, func(fate FastpathFastFate) {
					b6.Way[w].Fate = fate
					put(t, l.fast.Fast6, i, b6)
				},
			})
		}
	}
	all = slices.DeleteFunc(all, func(e entry) bool { return e.fate.Generation == 0 })
	slices.SortFunc(all, func(a, b entry) int { return int(a.place&0x3fffffff) - int(b.place&0x3fffffff) })
	return all
}

func portsOf(ports uint32) (src, dst uint16) {
	b := binary.NativeEndian.AppendUint32(nil, ports)
	return binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
}

func pairOf(addrs uint64, ports uint32) (src, dst netip.AddrPort) {
	b := binary.NativeEndian.AppendUint64(nil, addrs)
	from, to := portsOf(ports)
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b)), from), netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:])), to)
}

func addrOf(words [4]uint32) netip.Addr {
	var b []byte
	for _, w := range words {
		b = binary.NativeEndian.AppendUint32(b, w)
	}
	return netip.AddrFrom16([16]byte(b))
}

func (l *learnLab) hop(t *testing.T, number uint16) (hop FastpathFastHop) {
	t.Helper()
	mustDo(t, l.fast.FastHops.Lookup(uint32(number), &hop))
	return hop
}

// counted is how many packets conntrack has seen of the flow with this source port.
func (l *learnLab) counted(t *testing.T, ipv6 bool, sport uint16) (original, reply uint64) {
	t.Helper()
	family := netlink.InetFamily(unix.AF_INET)
	if ipv6 {
		family = unix.AF_INET6
	}
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
	mustDo(t, err)
	for _, flow := range flows {
		if flow.Forward.SrcPort == sport {
			return flow.Forward.Packets, flow.Reverse.Packets
		}
	}
	return 0, 0
}
