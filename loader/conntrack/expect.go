// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
)

// ExpectFlags are NF_CT_EXPECT_*.
type ExpectFlags uint32

// The bits of ExpectFlags.
const (
	ExpectPermanent ExpectFlags = 1 << iota // stays when a flow has come
	ExpectInactive
	ExpectUserspace
)

// Expectation is a flow that a helper has seen announced.
type Expectation struct {
	Master Tuple // original tuple of the entry whose helper expects it
	// Tuple is that of its first packet, as it comes in. Only the source is open:
	// its address where AnySrc is set, its port where that is 0.
	Tuple    Tuple
	AnySrc   bool
	Timeout  time.Duration // left to live, in seconds
	Helper   string        // "ftp", "sip", … or ""
	Flags    ExpectFlags
	Class    uint32 // the helper's own numbering
	Function string // what the kernel calls for the new entry: "nat-follow-master", … or ""
	// NAT is what Function translates to: the address and port that the inside
	// host announced. NATReply tells that it is about the reply direction. The
	// zero value: nothing.
	NAT      netip.AddrPort
	NATReply bool
}

// functionMax bounds CTA_EXPECT_FN: no name in the kernel is as long.
const functionMax = 64

// decodeExpectation reads the payload of an EXP_NEW message: struct nfgenmsg and
// attributes. Unknown attributes are skipped. The kernel does not tell the zone.
func decodeExpectation(data []byte) (*Expectation, error) {
	if len(data) < headerLen {
		return nil, fmt.Errorf("decode expectation: %d octets are shorter than the header", len(data))
	}
	e := new(Expectation)
	var mask Tuple
	zone := uint16(0)
	a := attributes{rest: data[headerLen:]}
	for a.next() {
		switch a.kind {
		case ctaExpectMask:
			mask.decode(&a)
		case ctaExpectZone:
			zone = a.uint16()
		default:
			e.attribute(&a)
		}
	}
	if a.err == nil && (!e.Master.Src.IsValid() || !e.Tuple.Src.IsValid() || !mask.Src.IsValid()) {
		a.err = errors.New("without master, tuple and mask")
	}
	if a.err != nil {
		return nil, fmt.Errorf("decode expectation: %w", a.err)
	}
	e.AnySrc = mask.Src.IsUnspecified()
	if mask.SrcPort == 0 {
		e.Tuple.SrcPort = 0
	}
	e.Master.Zone, e.Tuple.Zone = zone, zone
	return e, nil
}

func (e *Expectation) attribute(a *attributes) {
	switch a.kind {
	case ctaExpectMaster:
		e.Master.decode(a)
	case ctaExpectTuple:
		e.Tuple.decode(a)
	case ctaExpectTimeout:
		e.Timeout = time.Duration(a.uint32()) * time.Second
	case ctaExpectHelpName:
		e.Helper = a.name("helper name", helperNameMax)
	case ctaExpectFlags:
		e.Flags = ExpectFlags(a.uint32())
	case ctaExpectClass:
		e.Class = a.uint32()
	case ctaExpectFunction:
		e.Function = a.name("name of a function", functionMax)
	case ctaExpectNAT:
		e.decodeNAT(a)
	}
}

// decodeNAT reads a tuple whose source says what is translated to.
func (e *Expectation) decodeNAT(a *attributes) {
	in := a.inside()
	for in.next() {
		switch in.kind {
		case ctaExpectNATDir:
			e.NATReply = in.uint32() != 0
		case ctaExpectNATTuple:
			var to Tuple
			to.decode(&in)
			e.NAT = to.Source()
		}
	}
	a.fail(in.err)
}

// Expectations hands every expectation to yield, until yield returns an error,
// which Expectations returns, or ctx ends. yield may use the Conn, but not for
// another dump.
func (c *Conn) Expectations(ctx context.Context, yield func(*Expectation) error) error {
	return c.dump(ctx, message(msgExpectGet, netlink.Dump, uint8(AnyFamily), nil), func(m netlink.Message) error {
		e, err := decodeExpectation(m.Data)
		if err != nil {
			return fmt.Errorf("dump expectations: %w", err)
		}
		return yield(e)
	})
}
