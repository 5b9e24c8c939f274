// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// prepare finds the pin, or says why the flow cannot be.
func (w *installing) prepare(index *replicaIndex) {
	f := w.Flow
	if !isPossible(f) {
		w.outcome = RefusedInvalid
		return
	}
	if (f.Pin == policy.PinName{}) {
		return
	}
	w.pin = index.named[f.Pin]
	if w.pin == nil || !slices.Contains(w.pin.VIPs, f.To.IP()) {
		w.outcome = RefusedNoPin
		return
	}
	w.key = newFlowKey(w.pin.Slot, f.Proto, wireEnd(f.To), wireEnd(f.From))
}

// isPossible tells whether a flow can be one: a peer's word is not trusted.
func isPossible(f *policy.Flow) bool {
	is4 := f.Src.Is4()
	for _, end := range []policy.End{f.Src, f.Dst, f.From, f.To} {
		if ip := end.IP(); end.Is4() != is4 || ip.IsUnspecified() || ip.IsMulticast() {
			return false
		}
	}
	switch f.Proto {
	case unix.IPPROTO_TCP:
		return f.TCPState < uint8(conntrack.TCPSynSent2)+1
	case unix.IPPROTO_ICMP:
		return is4
	case unix.IPPROTO_ICMPV6:
		return !is4
	case unix.IPPROTO_SCTP:
		return f.Extra != nil
	}
	return true
}

// wireEnd is an End as newFlowKey takes it.
func wireEnd(e policy.End) netip.AddrPort { return netip.AddrPortFrom(e.IP(), e.Port) }

// origTuple is the original tuple of a flow.
func origTuple(key *policy.FlowKey) conntrack.Tuple {
	t := conntrack.Tuple{Src: key.Src.IP(), Dst: key.Dst.IP(), Proto: key.Proto, Zone: key.Zone}
	if t.IsICMP() {
		t.ICMPType, t.ICMPID = echoRequest(key.Proto), key.Src.Port
	} else {
		t.SrcPort, t.DstPort = key.Src.Port, key.Dst.Port
	}
	return t
}

// wireTuple is the reply tuple of a flow that conntrack knows by its public end.
func wireTuple(f *policy.Flow) conntrack.Tuple {
	t := conntrack.Tuple{Src: f.From.IP(), Dst: f.To.IP(), Proto: f.Proto, Zone: f.Zone}
	if t.IsICMP() {
		t.ICMPType, t.ICMPID = echoReply(f.Proto), f.To.Port
	} else {
		t.SrcPort, t.DstPort = f.From.Port, f.To.Port
	}
	return t
}

// echoRequest is the type of a ping, RFC 792 and RFC 4443 section 4.1.
func echoRequest(proto uint8) uint8 {
	if proto == unix.IPPROTO_ICMPV6 {
		return 128
	}
	return 8
}

// entry says what the flow's entry is to be. It points into w.
func (w *installing) entry(e *conntrack.Entry, x *installer) {
	f := w.Flow
	*e = conntrack.Entry{Orig: origTuple(&f.FlowKey), Timeout: w.timeout(x), Status: status(f), Mark: f.Mark}
	if f.To != f.Src {
		e.NATSrc = wireEnd(f.To)
	}
	if f.From != f.Dst {
		e.NATDst = wireEnd(f.From)
	}
	e.TCP, e.SCTP = w.state()
	if f.Proto == unix.IPPROTO_GRE {
		e.Status |= conntrack.FixedTimeout // see conntrack.Entry
	}
	if f.Extra == nil {
		return
	}
	e.Helper = f.Extra.Helper
	if w.childOf() {
		e.Master = &w.master
	}
	for i, at := range []**conntrack.Adjustment{&e.OrigAdjust, &e.ReplyAdjust} {
		if f.Extra.Adjust[i] != (policy.SeqAdjust{}) {
			w.adjust[i] = conntrack.Adjustment(f.Extra.Adjust[i])
			*at = &w.adjust[i]
		}
	}
}

// change says what is new of the flow's entry.
func (w *installing) change(c *conntrack.Change, x *installer) {
	f := w.Flow
	*c = conntrack.Change{
		Tuple: origTuple(&f.FlowKey), Timeout: w.timeout(x), Status: status(f), Mark: f.Mark, MarkMask: ^uint32(0),
	}
	if f.Proto == unix.IPPROTO_GRE {
		c.Timeout = 0 // it is fixed
	}
	c.TCP, c.SCTP = w.state()
}

func status(f *policy.Flow) (bits conntrack.Status) {
	if f.Bits&policy.FlowSeenReply != 0 {
		bits |= conntrack.SeenReply
	}
	if f.Bits&policy.FlowAssured != 0 {
		bits |= conntrack.Assured
	}
	return bits
}

// state is what the protocol knows. A TCP connection that opens is taken for
// established: whatever its next packet is, conntrack lets it pass.
func (w *installing) state() (*conntrack.TCP, *conntrack.SCTP) {
	f := w.Flow
	switch f.Proto {
	case unix.IPPROTO_TCP:
		w.tcp = conntrack.TCP{State: tcpState(f), OrigScale: f.TCPScale[0], ReplyScale: f.TCPScale[1]}
		return &w.tcp, nil
	case unix.IPPROTO_SCTP:
		w.sctp = conntrack.SCTP{State: f.Extra.SCTPState, OrigTag: f.Extra.SCTPTags[0], ReplyTag: f.Extra.SCTPTags[1]}
		return nil, &w.sctp
	}
	return nil, nil
}

func tcpState(f *policy.Flow) conntrack.TCPState {
	switch state := conntrack.TCPState(f.TCPState); state {
	case conntrack.TCPNone, conntrack.TCPSynSent, conntrack.TCPSynReceived, conntrack.TCPSynSent2:
		return conntrack.TCPEstablished
	default:
		return state
	}
}

// leastTimeout is what conntrack gives a connection that was reset.
const leastTimeout = 10 * time.Second

// timeout is how long the entry lives without a packet. One that a peer told
// waits for a takeover; only a connection that is over has its own time. (A
// half-closed one may go on for long.)
func (w *installing) timeout(x *installer) time.Duration {
	f := w.Flow
	switch {
	case f.Proto == unix.IPPROTO_GRE:
		return x.standby // no packet prolongs it
	case x.ordinary != nil:
		tcp, sctp := w.state()
		bits := status(f)
		if bits&conntrack.SeenReply != 0 { // no UDP stream is assured that a flow table has had, see seenStatus
			bits |= conntrack.Assured
		}
		return x.ordinary.of(f.Proto, bits, tcp, sctp)
	case f.Proto == unix.IPPROTO_TCP && tcpState(f) >= conntrack.TCPLastAck:
		return max(f.Timeout, leastTimeout)
	}
	return x.standby
}

// childOf fills in the master, if the flow has one.
func (w *installing) childOf() bool {
	if w.Flow.Extra.Master == (policy.FlowKey{}) {
		return false
	}
	w.master = origTuple(&w.Flow.Extra.Master)
	return true
}

// doWithout takes from a flow what this kernel does not have: the helper, or the
// entry of its master.
func (w *installing) doWithout(err error) bool {
	if w.Flow.Extra == nil {
		return false
	}
	extra := *w.Flow.Extra
	switch {
	case errors.Is(err, unix.EOPNOTSUPP) && extra.Helper != "":
		extra.Helper = ""
	case errors.Is(err, unix.ENOENT) && extra.Master != (policy.FlowKey{}):
		extra.Master = policy.FlowKey{}
	default:
		return false
	}
	flow := *w.Flow
	flow.Extra = &extra
	w.Flow = &flow
	return true
}
