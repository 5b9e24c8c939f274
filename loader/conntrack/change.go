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

// Ref names an entry. With an ID it names this one and, as far as Flow.ID goes,
// not a later one of the same tuple; ID 0 means whichever has the tuple.
type Ref struct {
	Orig Tuple // its original tuple; the reply tuple serves as well
	ID   uint32
}

// Ref names the flow.
func (f *Flow) Ref() Ref { return Ref{Orig: f.Orig, ID: f.ID} }

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
	// another host as well; the zero value leaves it alone.
	NATDst  netip.AddrPort
	Timeout time.Duration // until a packet comes, in whole seconds, rounded up; at least 1 s
	// Status may have SeenReply, Assured and FixedTimeout; the other bits are
	// the kernel's affair and are left out. GRE needs FixedTimeout, and somebody
	// who renews it: the kernel tells only the entries that it made itself how
	// long a packet prolongs them, the others end with their first one.
	Status Status
	Mark   uint32
	// TCP is required for TCP and nil else. Windows are always made liberal,
	// since the sequence numbers are not known; the flags are ignored. The
	// kernel takes the scales only in the state ESTABLISHED.
	TCP *TCP
	// SCTP is required for SCTP and nil else.
	SCTP *SCTP
}

// settable are the status bits that an entry may be born with.
const settable = SeenReply | Assured | FixedTimeout

// scaleMax is TCP_MAX_WSCALE, RFC 7323 section 2.3.
const scaleMax = 14

func (e Entry) check() error {
	if err := e.Orig.checkRequest(); err != nil {
		return err
	}
	switch {
	case e.Timeout <= 0:
		return errors.New("entry has no timeout")
	case e.NATSrc.IsValid() && e.NATSrc.Addr().Is4() != e.Orig.Src.Is4():
		return fmt.Errorf("source becomes %v of the other IP version", e.NATSrc.Addr())
	case e.NATDst.IsValid() && e.NATDst.Addr().Is4() != e.Orig.Dst.Is4():
		return fmt.Errorf("destination becomes %v of the other IP version", e.NATDst.Addr())
	case (e.Orig.Proto == unix.IPPROTO_TCP) != (e.TCP != nil):
		return errors.New("TCP, and nothing else, needs a TCP state")
	case (e.Orig.Proto == unix.IPPROTO_SCTP) != (e.SCTP != nil):
		return errors.New("SCTP, and nothing else, needs an SCTP state")
	case e.TCP != nil && (e.TCP.OrigScale > scaleMax || e.TCP.ReplyScale > scaleMax):
		return fmt.Errorf("window scales %d and %d, at most %d", e.TCP.OrigScale, e.TCP.ReplyScale, scaleMax)
	}
	return nil
}

// message encodes the request. The reply tuple is the plain inverse of the
// original and the translation a separate attribute: the kernel then works out
// the reply tuple and the NAT state itself. Given a translated reply tuple or
// NAT status bits it makes an entry that only looks right.
func (e Entry) message() (netlink.Message, error) {
	if err := e.check(); err != nil {
		return netlink.Message{}, err
	}
	reply, ok := e.Orig.Inverse()
	if !ok {
		return netlink.Message{}, fmt.Errorf("icmp type %d has no answer", e.Orig.ICMPType)
	}
	ae := newEncoder()
	e.Orig.encode(ae, ctaTupleOrig)
	reply.encode(ae, ctaTupleReply)
	encodeNAT(ae, ctaNATSrc, e.NATSrc, e.Orig.hasPorts())
	encodeNAT(ae, ctaNATDst, e.NATDst, e.Orig.hasPorts())
	ae.Uint32(ctaTimeout, seconds(e.Timeout))
	ae.Uint32(ctaStatus, uint32(e.Status&settable|Confirmed))
	ae.Uint32(ctaMark, e.Mark)
	if e.Orig.Zone != 0 {
		ae.Uint16(ctaZone, e.Orig.Zone)
	}
	if e.TCP != nil {
		e.TCP.encode(ae)
	}
	if e.SCTP != nil {
		e.SCTP.encode(ae)
	}
	attrs, err := ae.Encode()
	if err != nil {
		return netlink.Message{}, err
	}
	flags := netlink.Acknowledge | netlink.Create | netlink.Excl
	return message(msgNew, flags, familyOf(e.Orig.Src), attrs), nil
}

func (t *TCP) encode(ae *netlink.AttributeEncoder) {
	flags := byte(TCPLiberal | TCPWindowScale)
	ae.Nested(ctaProtoInfo, func(info *netlink.AttributeEncoder) error {
		info.Nested(ctaProtoInfoTCP, func(tcp *netlink.AttributeEncoder) error {
			tcp.Uint8(ctaTCPState, uint8(t.State))
			tcp.Uint8(ctaTCPScaleOrig, t.OrigScale)
			tcp.Uint8(ctaTCPScaleReply, t.ReplyScale)
			tcp.Bytes(ctaTCPFlagsOrig, []byte{flags, flags}) // value, mask
			tcp.Bytes(ctaTCPFlagsReply, []byte{flags, flags})
			return nil
		})
		return nil
	})
}

func (s *SCTP) encode(ae *netlink.AttributeEncoder) {
	ae.Nested(ctaProtoInfo, func(info *netlink.AttributeEncoder) error {
		info.Nested(ctaProtoInfoSCTP, func(sctp *netlink.AttributeEncoder) error {
			sctp.Uint8(ctaSCTPState, s.State)
			sctp.Uint32(ctaSCTPTagOrig, s.OrigTag)
			sctp.Uint32(ctaSCTPTagReply, s.ReplyTag)
			return nil
		})
		return nil
	})
}

func encodeNAT(ae *netlink.AttributeEncoder, kind uint16, to netip.AddrPort, ports bool) {
	if !to.IsValid() {
		return
	}
	least, most := uint16(ctaNATv4Min), uint16(ctaNATv4Max)
	if !to.Addr().Is4() {
		least, most = ctaNATv6Min, ctaNATv6Max
	}
	ae.Nested(kind, func(nat *netlink.AttributeEncoder) error {
		nat.Bytes(least, to.Addr().AsSlice())
		nat.Bytes(most, to.Addr().AsSlice())
		if !ports {
			return nil
		}
		nat.Nested(ctaNATProto, func(proto *netlink.AttributeEncoder) error {
			proto.Uint16(ctaProtoNATMin, to.Port())
			proto.Uint16(ctaProtoNATMax, to.Port())
			return nil
		})
		return nil
	})
}

// seconds rounds a positive duration up to what CTA_TIMEOUT can say.
func seconds(d time.Duration) uint32 {
	s := int64(d / time.Second)
	if d%time.Second != 0 {
		s++
	}
	return uint32(min(s, math.MaxInt32))
}

func encodeRef(ref Ref) ([]byte, error) {
	if err := ref.Orig.checkRequest(); err != nil {
		return nil, err
	}
	ae := newEncoder()
	ref.Orig.encode(ae, ctaTupleOrig)
	if ref.Orig.Zone != 0 {
		ae.Uint16(ctaZone, ref.Orig.Zone)
	}
	if ref.ID != 0 {
		ae.Uint32(ctaID, ref.ID)
	}
	return ae.Encode()
}

func (r Ref) deleteMessage() (netlink.Message, error) {
	attrs, err := encodeRef(r)
	if err != nil {
		return netlink.Message{}, err
	}
	return message(msgDelete, netlink.Acknowledge, familyOf(r.Orig.Src), attrs), nil
}

// Create makes entries. The first result has one element for each, nil or an
// *Error: ErrExist where one of the two tuples is taken. The second is an
// error of the exchange as a whole; which entries were made is then not known.
func (c *Conn) Create(entries []Entry) ([]error, error) {
	b := batch{op: "create"}
	for _, entry := range entries {
		m, err := entry.message()
		b.add(entry.Orig, m, err)
	}
	return b.run(c.requests)
}

// Delete removes entries; a destroy event follows. Results as those of
// Create, with ErrNotExist where there is no such entry.
func (c *Conn) Delete(refs []Ref) ([]error, error) {
	b := batch{op: "delete"}
	for _, ref := range refs {
		m, err := ref.deleteMessage()
		b.add(ref.Orig, m, err)
	}
	return b.run(c.requests)
}

// Replacement is an entry that takes another one's place.
type Replacement struct {
	Old Ref
	New Entry
}

// Replace deletes and creates each pair by neighbouring messages of one system
// call, so that a packet hardly ever falls between them. An entry that could
// not be deleted is not replaced unless it had gone already; when only the
// creation fails, the flow is left without one. Results as those of Create, of
// the creation: ErrExist also where the old entry still is.
func (c *Conn) Replace(replacements []Replacement) ([]error, error) {
	b := batch{op: "replace"}
	for _, r := range replacements {
		create, err := r.New.message()
		if err == nil { // else the old entry stays
			var remove netlink.Message
			remove, err = r.Old.deleteMessage()
			b.extra(remove, err)
		}
		b.add(r.New.Orig, create, err)
	}
	return b.run(c.requests)
}

// SetTimeout gives entries a new timeout, in whole seconds, rounded up.
// Results as those of Delete; the IDs are not looked at.
func (c *Conn) SetTimeout(refs []Ref, timeout time.Duration) ([]error, error) {
	b := batch{op: "set timeout of"}
	for _, ref := range refs {
		m, err := ref.timeoutMessage(timeout)
		b.add(ref.Orig, m, err)
	}
	return b.run(c.requests)
}

func (r Ref) timeoutMessage(timeout time.Duration) (netlink.Message, error) {
	if timeout <= 0 {
		return netlink.Message{}, fmt.Errorf("timeout of %v, must be positive", timeout)
	}
	attrs, err := encodeRef(Ref{Orig: r.Orig})
	if err != nil {
		return netlink.Message{}, err
	}
	ae := newEncoder()
	ae.Uint32(ctaTimeout, seconds(timeout))
	change, err := ae.Encode()
	if err != nil {
		return netlink.Message{}, err
	}
	return message(msgNew, netlink.Acknowledge, familyOf(r.Orig.Src), append(attrs, change...)), nil
}

// batch gathers one request's messages and sorts out whose answer is whose.
type batch struct {
	op       string
	messages []netlink.Message
	items    []item
}

type item struct {
	tuple   Tuple
	message int   // index of the message whose answer counts, if err is nil
	err     error // it could not even be encoded
}

func (b *batch) add(tuple Tuple, m netlink.Message, err error) {
	b.items = append(b.items, item{tuple: tuple, message: len(b.messages), err: err})
	if err == nil {
		b.messages = append(b.messages, m)
	}
}

// extra sends a message whose answer nobody wants.
func (b *batch) extra(m netlink.Message, err error) {
	if err == nil {
		b.messages = append(b.messages, m)
	}
}

func (b *batch) run(s *socket) ([]error, error) {
	answers, err := s.exchange(b.messages)
	if err != nil {
		return nil, fmt.Errorf("%s %d conntrack entries: %w", b.op, len(b.items), err)
	}
	results := make([]error, len(b.items))
	for i, item := range b.items {
		err := item.err
		if err == nil {
			err = answers[item.message].err
		}
		if err != nil {
			results[i] = &Error{Op: b.op, Tuple: item.tuple, Err: err}
		}
	}
	return results, nil
}
