// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"vippin/policy"
)

// TestCosts measures the programs of a router with flows: every one is there, and
// no counter moves.
func TestCosts(t *testing.T) {
	onBed(t, policy.BenchFast, asItIs, func(b *bed) error {
		if err := b.establish(10); err != nil {
			return err
		}
		return in(b.router, func() error { return b.testCosts(t) })
	})
	needRoot(t)
	if _, err := Costs(context.Background(), "lo"); err == nil || !strings.Contains(err.Error(), "no program of vippin") {
		t.Errorf("the loopback device: %v", err)
	}
}

func (b *bed) testCosts(t *testing.T) error {
	look := func() (map[string]uint64, error) {
		pins, err1 := b.pin.counters()
		state, err2 := b.fast.path.State()
		all := map[string]uint64{"pinned": pins.Pinned, "returned": pins.Returned, "unpinned": pins.TotalUnpinned(), "created": pins.Created}
		maps.Copy(all, state.Packets)
		maps.Copy(all, state.Unlearnt)
		return all, errors.Join(err1, err2)
	}
	before, err := look()
	if err != nil {
		return err
	}
	costs, err := Costs(context.Background(), wanName)
	if err != nil {
		return err
	}
	after, err := look()
	if err != nil {
		return err
	}
	for name, n := range after { // the kernel itself says a word now and then
		if n-before[name] > 100 {
			t.Errorf("counter %s moved from %d to %d", name, before[name], n)
		}
	}
	var got []string
	for _, c := range costs {
		got = append(got, c.Hook+" "+c.Packet)
		if c.Ns <= 0 || c.Runs < 3000 || c.ID == 0 || strings.Contains(c.Program, "another one") {
			t.Errorf("cost %+v", c)
		}
	}
	want := []string{
		"ingress IPv4, of no flow", "ingress IPv6, of no flow", "egress IPv4, of no flow", "egress IPv6, of no flow",
		"xdp IPv4, forwarded", "xdp IPv6, forwarded", "xdp IPv4, of no flow", "xdp IPv6, of no flow",
	}
	if !slices.Equal(got, want) {
		t.Errorf("measured %q, want %q", got, want)
	}
	return nil
}
