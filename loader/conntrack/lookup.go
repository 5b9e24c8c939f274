// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// LookUp hands to found the entries that are there of those that have tuples as
// their original or their reply tuple, each in its tuple's zone; the Flow is only
// valid during the call, which must not use the Conn. failed is told of the
// tuples that could not be looked for. Either may be called in any order.
func (c *Conn) LookUp(tuples []Tuple, found func(i int, flow *Flow), failed func(i int, err error)) error {
	encode := func(r *request, i int) error {
		if err := tuples[i].checkRequest(); err != nil {
			return err
		}
		r.begin(msgGet, 0, familyOf(tuples[i].Src))
		Ref{Orig: tuples[i]}.encode(r)
		return nil
	}
	var d decoder
	err := c.requests.do(len(tuples), encode, func(i int, m netlink.Message, err error) {
		if errors.Is(err, unix.ENOENT) {
			return
		}
		var flow *Flow
		if err == nil {
			flow, err = d.decode(m.Data)
		}
		if err != nil {
			failed(i, err)
			return
		}
		found(i, flow)
	})
	return wrapChange("look up", len(tuples), err)
}

// Usage is how many entries the table of this network namespace holds, and how
// many it may (sysctl nf_conntrack_max, the same for all of them). A table that
// is full drops flows that are not assured, and then packets.
func (c *Conn) Usage() (entries, most uint32, err error) {
	var refused error
	err = c.requests.do(1, func(r *request, _ int) error {
		r.begin(msgGetStats, 0, unix.AF_UNSPEC)
		return nil
	}, func(_ int, m netlink.Message, err error) {
		if refused = err; err != nil || len(m.Data) < headerLen {
			return
		}
		a := attributes{rest: m.Data[headerLen:]}
		for a.next() {
			switch a.kind {
			case ctaStatsGlobalEntries:
				entries = a.uint32()
			case ctaStatsGlobalMax:
				most = a.uint32()
			}
		}
		refused = a.err
	})
	if err = errors.Join(err, refused); err != nil {
		return 0, 0, fmt.Errorf("get usage of conntrack: %w", err)
	}
	return entries, most, nil
}
