// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Entry is a native NAT entry to be: conntrack itself translates the flow,
// provided the namespace has a chain of type nat and a rule that needs
// conntrack, such as the masquerade rule itself. Without these the kernel's
// hooks are not in place there and the inside address leaks.
type Entry struct {
	Orig Tuple // as the inside host sends
	// NATSrc is what the source becomes: address and port, of ICMP the
	// identifier; of protocols without ports the address alone. The zero value
	// leaves the source alone.
	NATSrc netip.AddrPort
	// NATDst is what the destination becomes, for flows that were forwarded to
	// another host as well; the zero value leaves it alone. ICMP has no port here.
	NATDst  netip.AddrPort
	Timeout time.Duration // until a packet comes, in whole seconds, rounded up; at least 1 s
	// Status may have SeenReply, Assured and FixedTimeout; the other bits are
	// the kernel's affair and are left out. GRE needs FixedTimeout, and somebody
	// who renews it (see Renew): the kernel tells only the entries that it made
	// itself how long a packet prolongs them, the others end with their first one.
	Status Status
	Mark   uint32
	// TCP is required for TCP and nil else. Windows are always made liberal, and
	// the highest acknowledgement is forgotten, since the sequence numbers are not
	// known; the flags are ignored. The kernel takes the scales only in the state
	// ESTABLISHED.
	TCP *TCP
	// SCTP is required for SCTP and nil else.
	SCTP *SCTP
	// Helper is its conntrack helper's name, or "". One that this kernel does not
	// have is refused with unix.EOPNOTSUPP.
	Helper string
	// Master is the original tuple of the entry whose helper expected this one, or
	// nil. It must exist.
	Master *Tuple
	// OrigAdjust and ReplyAdjust move the sequence numbers of a TCP flow with a
	// helper; nil: nothing was moved.
	OrigAdjust, ReplyAdjust *Adjustment
}

// settable are the status bits that an entry may be born with.
const settable = SeenReply | Assured | FixedTimeout

// scaleMax is TCP_MAX_WSCALE, RFC 7323 section 2.3.
const scaleMax = 14

func (e *Entry) check() error {
	if err := e.Orig.checkRequest(); err != nil {
		return err
	}
	if e.Master != nil {
		if err := e.Master.checkRequest(); err != nil {
			return fmt.Errorf("master: %w", err)
		}
	}
	switch {
	case e.Timeout <= 0:
		return errors.New("entry has no timeout")
	case e.NATSrc.IsValid() && e.NATSrc.Addr().Is4() != e.Orig.Src.Is4():
		return fmt.Errorf("source becomes %v of the other IP version", e.NATSrc.Addr())
	case e.NATDst.IsValid() && e.NATDst.Addr().Is4() != e.Orig.Dst.Is4():
		return fmt.Errorf("destination becomes %v of the other IP version", e.NATDst.Addr())
	case len(e.Helper) >= helperNameMax:
		return fmt.Errorf("helper name of %d octets, at most %d", len(e.Helper), helperNameMax-1)
	}
	return checkProto(e.Orig.Proto, e.TCP, e.SCTP)
}

func checkProto(proto uint8, tcp *TCP, sctp *SCTP) error {
	switch {
	case (proto == unix.IPPROTO_TCP) != (tcp != nil):
		return errors.New("TCP, and nothing else, needs a TCP state")
	case (proto == unix.IPPROTO_SCTP) != (sctp != nil):
		return errors.New("SCTP, and nothing else, needs an SCTP state")
	case tcp != nil && (tcp.OrigScale > scaleMax || tcp.ReplyScale > scaleMax):
		return fmt.Errorf("window scales %d and %d, at most %d", tcp.OrigScale, tcp.ReplyScale, scaleMax)
	}
	return nil
}

// encode writes the request. The reply tuple is the plain inverse of the
// original and the translation a separate attribute: the kernel then works out
// the reply tuple and the NAT state itself. Given a translated reply tuple or
// NAT status bits it makes an entry that only looks right.
func (e *Entry) encode(r *request) error {
	if err := e.check(); err != nil {
		return err
	}
	reply, ok := e.Orig.Inverse()
	if !ok {
		return fmt.Errorf("icmp type %d has no answer", e.Orig.ICMPType)
	}
	r.begin(msgNew, netlink.Create|netlink.Excl, familyOf(e.Orig.Src))
	r.tuple(ctaTupleOrig, &e.Orig)
	r.tuple(ctaTupleReply, &reply)
	e.encodeNAT(r)
	r.uint32(ctaTimeout, seconds(e.Timeout))
	r.uint32(ctaStatus, uint32(e.Status&settable|Confirmed))
	r.uint32(ctaMark, e.Mark)
	r.zone(e.Orig.Zone)
	r.protoInfo(e.TCP, e.SCTP)
	if e.Helper != "" {
		help := r.nest(ctaHelp)
		r.text(ctaHelpName, e.Helper)
		r.close(help)
	}
	if e.Master != nil {
		r.tuple(ctaTupleMaster, e.Master)
	}
	r.adjustment(ctaSeqAdjOrig, e.OrigAdjust)
	r.adjustment(ctaSeqAdjReply, e.ReplyAdjust)
	return nil
}

// encodeNAT says of both ends what becomes of them, if one is translated at all:
// an end that the kernel is told nothing of it gives another port when it finds
// the one taken.
func (e *Entry) encodeNAT(r *request) {
	if !e.NATSrc.IsValid() && !e.NATDst.IsValid() {
		return
	}
	src, dst := e.NATSrc, e.NATDst
	if !src.IsValid() {
		src = e.Orig.Source()
	}
	if !dst.IsValid() {
		dst = e.Orig.Destination()
	}
	// ICMP has one identifier, and the source's translation, which comes last, gives it.
	ports := e.Orig.hasPorts()
	r.nat(ctaNATDst, dst, ports && !e.Orig.IsICMP())
	r.nat(ctaNATSrc, src, ports)
}

func (r *request) nat(kind uint16, to netip.AddrPort, ports bool) {
	least, most := uint16(ctaNATv4Min), uint16(ctaNATv4Max)
	if !to.Addr().Is4() {
		least, most = ctaNATv6Min, ctaNATv6Max
	}
	nat := r.nest(kind)
	r.addr(least, to.Addr())
	r.addr(most, to.Addr())
	if ports {
		proto := r.nest(ctaNATProto)
		r.uint16(ctaProtoNATMin, to.Port())
		r.uint16(ctaProtoNATMax, to.Port())
		r.close(proto)
	}
	r.close(nat)
}

// protoInfo writes the state that is not nil.
func (r *request) protoInfo(tcp *TCP, sctp *SCTP) {
	if tcp == nil && sctp == nil {
		return
	}
	info := r.nest(ctaProtoInfo)
	if tcp != nil {
		state := r.nest(ctaProtoInfoTCP)
		r.uint8(ctaTCPState, uint8(tcp.State))
		r.uint8(ctaTCPScaleOrig, tcp.OrigScale)
		r.uint8(ctaTCPScaleReply, tcp.ReplyScale)
		r.tcpFlags(TCPLiberal | TCPWindowScale)
		r.close(state)
	}
	if sctp != nil {
		state := r.nest(ctaProtoInfoSCTP)
		r.uint8(ctaSCTPState, sctp.State)
		r.uint32(ctaSCTPTagOrig, sctp.OrigTag)
		r.uint32(ctaSCTPTagReply, sctp.ReplyTag)
		r.close(state)
	}
	r.close(info)
}

// liberal writes that segments outside the known windows are valid.
func (r *request) liberal() {
	info := r.nest(ctaProtoInfo)
	state := r.nest(ctaProtoInfoTCP)
	r.tcpFlags(TCPLiberal)
	r.close(state)
	r.close(info)
}

// tcpFlags sets flags of both directions, and forgets the highest acknowledgement:
// one below it would be invalid, liberal or not.
func (r *request) tcpFlags(flags TCPFlags) {
	set := uint16(flags)<<8 | uint16(flags|TCPMaxAckSet) // value, mask
	r.uint16(ctaTCPFlagsOrig, set)
	r.uint16(ctaTCPFlagsReply, set)
}

func (r *request) adjustment(kind uint16, a *Adjustment) {
	if a == nil {
		return
	}
	adjust := r.nest(kind)
	r.uint32(ctaSeqAdjPosition, a.Position)
	r.uint32(ctaSeqAdjBefore, uint32(a.Before))
	r.uint32(ctaSeqAdjAfter, uint32(a.After))
	r.close(adjust)
}

// seconds rounds a positive duration up to what CTA_TIMEOUT can say.
func seconds(d time.Duration) uint32 {
	s := int64(d / time.Second)
	if d%time.Second != 0 {
		s++
	}
	return uint32(min(s, math.MaxInt32))
}
