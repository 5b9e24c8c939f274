// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"vippin/policy"
)

// The kernel has one limit of flows and one table of them for all network
// namespaces. Only the machine's own can change them.
const (
	limitFile = "net/netfilter/nf_conntrack_max"
	tableFile = "net/netfilter/nf_conntrack_buckets"
)

// freshFlows are made on each router to tell how many new ones it takes.
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

// makeRoom reads the limits, and with raise makes them fit so many flows of one
// router until restore is called. Without, they must do.
func makeRoom(flows int, raise bool) (*room, error) {
	r := &room{}
	var err error
	if r.limit, err = readNumber(limitFile); err != nil {
		return nil, err
	}
	if r.buckets, err = readNumber(tableFile); err != nil {
		return nil, err
	}
	if r.fits(flows) && (!raise || !r.crowded(flows)) {
		return r, nil
	}
	if !raise {
		return nil, fmt.Errorf("measure %d flows: conntrack's limit is %d (net.netfilter.nf_conntrack_max, one for the whole machine): "+
			"--raise-limits lifts it until the end, or leave them out", flows, r.limit)
	}
	if err := r.raise(&r.buckets, tableFile, powerOfTwo(2*flows)); err != nil {
		return nil, errors.Join(err, r.restore())
	}
	if err := r.raise(&r.limit, limitFile, flows); err != nil {
		return nil, errors.Join(err, r.restore())
	}
	return r, nil
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
	if os.IsNotExist(err) { // conntrack comes with the first rule that needs it
		return 262_144, nil
	}
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
