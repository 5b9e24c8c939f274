// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// The kernel has one limit of flows and one table of them for all network
// namespaces. Only the machine's own can change them.
const (
	limitFile = "net/netfilter/nf_conntrack_max"
	tableFile = "net/netfilter/nf_conntrack_buckets"
)

// freshFlows are made on each router to tell how many new ones it takes; fewer, where
// conntrack has less room.
const freshFlows = 20_000

// room is what conntrack has for flows.
type room struct {
	limit, buckets int
	undo           []func() error
}

// fits says that a router may have so many flows.
func (r *room) fits(flows int) bool { return flows <= r.limit }

// crowded says that so many flows in all have no bucket of the table for
// themselves; each needs one for either direction.
func (r *room) crowded(flows int) bool { return 2*flows > r.buckets }

// tracked says how many routers of the cases have flows in conntrack.
func tracked(cases []policy.BenchCase) (n int) {
	for _, c := range cases {
		if ways[c].rules != noRules {
			n++
		}
	}
	return n
}

// tooMany says why a case is not measured with so many flows.
func (r *room) tooMany(name policy.BenchCase, flows int) string {
	return fmt.Sprintf("%s with %d flows: conntrack's limit is %d (net.netfilter.nf_conntrack_max, one for the whole machine): "+
		"--raise-limits lifts it until the end", name, flows, r.limit)
}

// makeRoom reads the limits, and with raise makes them fit so many flows of one
// router until restore is called. Without, they must do.
func makeRoom(flows int, raise bool) (*room, error) {
	r := &room{}
	if err := askConntrack(); err != nil {
		return nil, err
	}
	var err error
	if r.limit, err = readNumber(limitFile); err != nil {
		return nil, err
	}
	if r.buckets, err = readNumber(tableFile); err != nil {
		return nil, err
	}
	if !raise || (r.fits(flows) && !r.crowded(flows)) {
		return r, nil
	}
	if err := r.raise(&r.buckets, tableFile, powerOfTwo(2*flows)); err != nil {
		return nil, errors.Join(err, r.restore())
	}
	if err := r.raise(&r.limit, limitFile, flows); err != nil {
		return nil, errors.Join(err, r.restore())
	}
	return r, nil
}

// askConntrack makes the kernel load its module: before, there are no limits.
func askConntrack() error {
	conn, err := conntrack.Dial()
	if err != nil {
		return fmt.Errorf("open conntrack: %w", err)
	}
	defer func() { _ = conn.Close() }()
	nobody := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	_, err = conn.Get(conntrack.Tuple{Src: nobody, Dst: nobody, Proto: unix.IPPROTO_UDP, SrcPort: 1, DstPort: 1})
	if err != nil && !errors.Is(err, conntrack.ErrNotExist) {
		return fmt.Errorf("ask conntrack: %w", err)
	}
	return nil
}

func (r *room) raise(value *int, file string, to int) error {
	was := *value
	if was >= to {
		return nil
	}
	if err := writeSysctl(file, strconv.Itoa(to)); err != nil {
		return err
	}
	*value = to
	r.undo = append(r.undo, func() error { return writeSysctl(file, strconv.Itoa(was)) })
	return nil
}

func (r *room) restore() error {
	var errs []error
	for i := len(r.undo) - 1; i >= 0; i-- {
		errs = append(errs, r.undo[i]())
	}
	r.undo = nil
	return errors.Join(errs...)
}

func readNumber(file string) (int, error) {
	text, err := os.ReadFile("/proc/sys/" + file)
	if err != nil {
		return 0, fmt.Errorf("read sysctl %s: %w", file, err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fmt.Errorf("read sysctl %s: %w", file, err)
	}
	return n, nil
}

func powerOfTwo(atLeast int) int {
	n := 1
	for n < atLeast {
		n *= 2
	}
	return n
}
