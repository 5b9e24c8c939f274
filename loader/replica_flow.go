// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// flowReader turns conntrack entries into flows, each in the memory of the one
// before. It sees one plan and one set of options.
type flowReader struct {
	d       *Dataplane
	index   *replicaIndex
	options *replicaOptions

	flow   policy.Flow // what was read last
	extra  policy.FlowExtra
	local  *replicaEnd // where its local end is, nil = not on a pinned interface
	mapped bool        // there is a mapping
	key    flowKey     // of the mapping, there or not, if there is a local end
	end    publicEnd
}

func (r *Replica) newFlowReader() *flowReader {
	x := &flowReader{d: r.d}
	x.renew(r)
	return x
}

// renew takes the plan and options that are in force now.
func (x *flowReader) renew(r *Replica) { x.index, x.options = r.index.Load(), r.options.Load() }

// read fills in what the entry itself says, which is all but the pin and, of a
// pinned flow, its public end. It returns why the flow is not told.
func (x *flowReader) read(e *conntrack.Flow) skipReason {
	if reason := x.leavesOut(e); reason != 0 {
		return reason
	}
	orig, reply := &e.Orig, &e.Reply
	x.flow = policy.Flow{
		FlowKey: flowKeyOf(orig),
		From:    policy.End{Addr: reply.Src.As16(), Port: reply.SrcPort},
		To:      policy.End{Addr: reply.Dst.As16(), Port: reply.DstPort},
		Mark:    e.Mark, Timeout: e.Timeout,
	}
	if reply.IsICMP() {
		x.flow.To.Port = reply.ICMPID
	}
	if x.options.scope != policy.ScopeAll && !x.flow.NATed() {
		return skipScope
	}
	bits := seenStatus(e)
	if bits&conntrack.SeenReply != 0 {
		x.flow.Bits |= policy.FlowSeenReply
	}
	if bits&conntrack.Assured != 0 {
		x.flow.Bits |= policy.FlowAssured
	}
	if e.TCP != nil {
		x.flow.TCPState, x.flow.TCPScale = uint8(e.TCP.State), [2]uint8{e.TCP.OrigScale, e.TCP.ReplyScale}
	}
	if e.SCTP != nil || e.Helper != "" || e.Master != nil || e.OrigAdjust != nil || e.ReplyAdjust != nil {
		x.readExtra(e)
	}
	return 0
}

// seenStatus is what conntrack has seen of a flow, or would have if no flow table
// kept the packets from it: a UDP flow that is answered there lasts like a stream, and
// never becomes assured.
func seenStatus(e *conntrack.Flow) conntrack.Status {
	if e.Status&conntrack.Offload != 0 && e.Status&conntrack.SeenReply != 0 {
		return e.Status | conntrack.Assured
	}
	return e.Status
}

// leavesOut tells by protocol and addresses alone whether a flow is not told:
// most of what a router sees and nobody wants ends here.
func (x *flowReader) leavesOut(e *conntrack.Flow) skipReason {
	orig, reply := &e.Orig, &e.Reply
	dst := x.index.own[orig.Dst]
	switch {
	case !x.options.protocols[orig.Proto] || orig.IsICMP() && !isEcho(orig, reply) || !isReplicable(orig, reply):
		return skipProtocol
	case x.index.own[orig.Src] != 0 || x.index.own[reply.Src] != 0:
		return skipOwn
	case orig.Dst.IsMulticast():
		return skipMulticast
	case dst == ownUnique:
		return skipUnique
	case len(x.options.ignore) > 0 && (x.options.ignores(orig.Src) || x.options.ignores(reply.Src) ||
		dst == 0 && x.options.ignores(orig.Dst)):
		return skipIgnored
	}
	return 0
}

// isEcho tells whether a flow of ICMP is a ping from its original direction.
func isEcho(orig, reply *conntrack.Tuple) bool {
	return reply.ICMPType == echoReply(reply.Proto) && orig.ICMPType != reply.ICMPType
}

// isReplicable leaves out IPv6 packets between IPv4-mapped addresses, which
// policy.End takes for IPv4 and nobody can ask conntrack for.
func isReplicable(a, b *conntrack.Tuple) bool {
	return !a.Src.Is4In6() && !a.Dst.Is4In6() && !b.Src.Is4In6() && !b.Dst.Is4In6()
}

// flowKeyOf names the flow of an original tuple.
func flowKeyOf(orig *conntrack.Tuple) policy.FlowKey {
	key := policy.FlowKey{
		Src: policy.End{Addr: orig.Src.As16(), Port: orig.SrcPort}, Dst: policy.End{Addr: orig.Dst.As16(), Port: orig.DstPort},
		Zone: orig.Zone, Proto: orig.Proto,
	}
	if orig.IsICMP() {
		key.Src.Port = orig.ICMPID
	}
	return key
}

func (x *flowReader) readExtra(e *conntrack.Flow) {
	x.extra = policy.FlowExtra{Helper: e.Helper}
	x.flow.Extra = &x.extra
	if e.SCTP != nil {
		x.extra.SCTPState, x.extra.SCTPTags = e.SCTP.State, [2]uint32{e.SCTP.OrigTag, e.SCTP.ReplyTag}
	}
	if e.Master != nil {
		master := *e.Master
		master.Zone = e.Orig.Zone // the kernel does not tell it of the master
		x.extra.Master = flowKeyOf(&master)
	}
	for i, adjust := range []*conntrack.Adjustment{e.OrigAdjust, e.ReplyAdjust} {
		if adjust != nil {
			x.extra.Adjust[i] = policy.SeqAdjust(*adjust)
		}
	}
}

// place looks for the mapping of the flow that was read last, and takes from it
// the public end, the pin and the group.
func (x *flowReader) place(e *conntrack.Flow) error {
	x.local, x.mapped = nil, false
	ends := x.index.ends[e.Reply.Dst]
	for i := range ends {
		key, ok := replyKey(ends[i].slot, e.Reply)
		if !ok {
			continue
		}
		x.local, x.key = &ends[i], key
		if err := x.lookUp(); err != nil || x.mapped {
			return err
		}
	}
	x.flow.Group = x.groupOf(e.Reply.Dst, e.Orig.Dst)
	return nil
}

// lookUp looks for the mapping at x.key, and fills in what it says.
func (x *flowReader) lookUp() (err error) {
	if x.mapped, err = found(x.d.maps.ByLocal.Lookup(raw(&x.key), raw(&x.end))); err != nil {
		return fmt.Errorf("read map by_local: %w", err)
	}
	if !x.mapped {
		return nil
	}
	x.flow.To = policy.MakeEnd(endAddrPort(x.end.Addr.Word, x.end.Port))
	if pin := x.index.pins[x.end.Pin]; pin != nil {
		x.flow.Pin, x.flow.Group = pin.name(x.flow.To.Is4()), pin.group
	}
	return nil
}

// ifindex is that of the pinned interface on which the flow's local end is.
func (x *flowReader) ifindex() int {
	if x.local == nil {
		return 0
	}
	return x.local.ifindex
}

// groupOf finds the group of the first address that is a VIP.
func (x *flowReader) groupOf(addrs ...netip.Addr) string {
	for _, addr := range addrs {
		if group, ok := x.index.groups[addr]; ok {
			return group
		}
	}
	return ""
}

// isLeftAlone tells whether the programs have decided that the flow at x.key
// keeps the router's own address.
func (x *flowReader) isLeftAlone() (bool, error) {
	var note leftAlone
	noted, err := found(x.d.maps.Unpinned.Lookup(&x.key, &note))
	if err != nil {
		return false, fmt.Errorf("read map unpinned: %w", err)
	}
	return noted, nil
}

// whyNot says why the flow that was placed last is not told, if so. Without a
// mapping it must not come from an address that no other router gets.
func (x *flowReader) whyNot() skipReason {
	switch {
	case x.mapped:
		return 0
	case x.local != nil && x.local.unique, x.index.own[x.flow.To.IP()] == ownUnique:
		return skipNoMapping
	case x.options.scope == policy.ScopePinned:
		return skipScope
	}
	return 0
}

// expectation says in policy's words what a helper expects.
func (x *flowReader) expectation(e *conntrack.Expectation) policy.Expectation {
	told := policy.Expectation{
		Master: flowKeyOf(&e.Master), Dst: policy.MakeEnd(e.Tuple.Destination()), Proto: e.Tuple.Proto,
		AnySrc: e.AnySrc, Timeout: e.Timeout, Helper: e.Helper, Class: e.Class, Flags: uint32(e.Flags),
		Function: e.Function, NAT: policy.MakeEnd(e.NAT), NATReply: e.NATReply,
	}
	if !e.AnySrc {
		told.Src = policy.MakeEnd(e.Tuple.Source())
	}
	return told
}

// tellsState leaves out what a peer does nothing with: a connection that is not
// established yet is established to it anyway, and one that closes goes on until
// it is closed.
func tellsState(e *conntrack.Flow) bool {
	if e.Orig.Proto != unix.IPPROTO_TCP || e.TCP == nil {
		return true
	}
	switch e.TCP.State {
	case conntrack.TCPSynSent, conntrack.TCPEstablished, conntrack.TCPTimeWait, conntrack.TCPClose:
		return true
	}
	return false
}
