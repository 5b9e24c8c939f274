// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
)

// Addresses of which every bit counts, in an expectation's mask.
var (
	all4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	all6 = netip.AddrFrom16([16]byte{
		255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
	})
)

func (e *Expectation) check() error {
	if err := e.Master.checkRequest(); err != nil {
		return fmt.Errorf("master: %w", err)
	}
	tuple := e.Tuple
	if e.AnySrc {
		tuple.Src = tuple.Dst
	}
	if err := tuple.checkRequest(); err != nil {
		return err
	}
	switch {
	case e.Timeout < time.Second:
		return errors.New("expectation has no timeout")
	case e.Master.Zone != e.Tuple.Zone:
		return errors.New("expectation is in another zone than its master")
	case e.Tuple.IsICMP():
		return errors.New("expectation of ICMP")
	case e.NAT.IsValid() && e.NAT.Addr().Is4() != tuple.Dst.Is4():
		return fmt.Errorf("expectation becomes %v of the other IP version", e.NAT.Addr())
	case len(e.Helper) >= helperNameMax || len(e.Function) >= functionMax:
		return errors.New("name of a helper or function is too long")
	}
	return nil
}

func (e *Expectation) encode(r *request) error {
	if err := e.check(); err != nil {
		return err
	}
	every, none := all4, netip.IPv4Unspecified()
	if !e.Tuple.Dst.Is4() {
		every, none = all6, netip.IPv6Unspecified()
	}
	tuple := e.Tuple
	mask := Tuple{Src: every, Dst: every, Proto: tuple.Proto, SrcPort: math.MaxUint16, DstPort: math.MaxUint16}
	if e.AnySrc {
		tuple.Src, mask.Src = none, none
	}
	if tuple.SrcPort == 0 {
		mask.SrcPort = 0
	}
	r.begin(msgExpectNew, netlink.Create|netlink.Excl, familyOf(tuple.Dst))
	r.tuple(ctaExpectMaster, &e.Master)
	r.tuple(ctaExpectTuple, &tuple)
	r.tuple(ctaExpectMask, &mask)
	r.uint32(ctaExpectTimeout, seconds(e.Timeout))
	if e.Helper != "" {
		r.text(ctaExpectHelpName, e.Helper)
	}
	if e.Master.Zone != 0 {
		r.uint16(ctaExpectZone, e.Master.Zone)
	}
	r.uint32(ctaExpectFlags, uint32(e.Flags))
	r.uint32(ctaExpectClass, e.Class)
	if e.Function != "" {
		r.text(ctaExpectFunction, e.Function)
	}
	if e.NAT.IsValid() {
		to := Tuple{Src: e.NAT.Addr(), SrcPort: e.NAT.Port(), Dst: none, Proto: tuple.Proto}
		nat := r.nest(ctaExpectNAT)
		direction := uint32(0)
		if e.NATReply {
			direction = 1
		}
		r.uint32(ctaExpectNATDir, direction)
		r.tuple(ctaExpectNATTuple, &to)
		r.close(nat)
	}
	return nil
}

// Expect makes expectations, of entries that have a helper. Results as those of
// Create, named by the expectation's tuple; ErrNotExist: there is no such master.
// Of a master that Create gave its helper, the expectation counts as one made by
// user space, which ends after its timeout alone. One that is there already is
// ErrExist or, where it differs in its timeout only, renewed.
func (c *Conn) Expect(expectations []Expectation) ([]error, error) {
	return collect("create expectation of", len(expectations), func(i int) Tuple { return expectations[i].Tuple },
		func(failed func(int, error)) error {
			return c.requests.change(len(expectations), func(r *request, i int) error { return expectations[i].encode(r) }, failed)
		})
}
