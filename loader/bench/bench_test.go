// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vippin/bpf"
	"vippin/loader"
	"vippin/policy"
)

// TestRun measures everything for a moment: every combination gets its row, and
// nothing is left behind.
func TestRun(t *testing.T) {
	for _, opts := range []Options{
		{Cases: policy.BenchCases(), Flows: []int{1, 300}, Families: []string{ipv4, ipv6}, Rounds: 1, Time: 2 * time.Millisecond},
		{Cases: []policy.BenchCase{policy.BenchMasquerade, policy.BenchRedirect}, Flows: []int{300, 1}, Families: []string{ipv4, ipv6}, Rounds: 3, Time: time.Millisecond},
	} {
		testRun(t, opts)
	}
}

func testRun(t *testing.T, opts Options) {
	needRoot(t)
	rows, err := Run(context.Background(), opts)
	if err != nil {
		t.Fatal(err)
	}
	if want := len(opts.Cases) * 2 * 2 * 2; len(rows) != want {
		t.Errorf("%d rows, want %d", len(rows), want)
	}
	for _, r := range rows {
		if r.Mpps <= 0 || r.Rounds != opts.Rounds || r.VsMasquerade == nil || r.VsRedirect == nil || r.Kernel == "" {
			t.Errorf("row %+v", r)
		}
		if r.Case == policy.BenchRedirect && *r.VsMasquerade < 1 {
			t.Errorf("%d flows %s: the bare redirect has %.2f of masquerade's rate", r.Flows, r.Direction, *r.VsMasquerade)
		}
	}
	nothingLeft(t)
}

func nothingLeft(t *testing.T) {
	t.Helper()
	pattern := filepath.Join(os.TempDir(), fmt.Sprintf("vpbench%d-*", os.Getpid()))
	if left, _ := filepath.Glob(pattern); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), "vpbench") {
		t.Errorf("mounts: %v\n%s", err, mounts)
	}
}

// TestInterrupt: a run that is to take an hour ends with its context, and takes
// everything away.
func TestInterrupt(t *testing.T) {
	needRoot(t)
	ctx, cancel := context.WithCancel(context.Background())
	opts := Options{
		Cases: []policy.BenchCase{policy.BenchPinned}, Rounds: 1_000_000, Time: time.Millisecond,
		Progress: func(string) { cancel() },
	}
	if _, err := Run(ctx, opts); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v, want %v", err, context.Canceled)
	}
	nothingLeft(t)
}

func TestOptions(t *testing.T) {
	for want, opts := range map[string]Options{
		`case "fast"`:      {Cases: []policy.BenchCase{"fast"}},
		`direction "up"`:   {Directions: []policy.BenchDirection{"up"}},
		"0 flows":          {Flows: []int{0}},
		"200001 flows":     {Flows: []int{200_001}},
		"61 octets":        {Sizes: []int{61}},
		"1515 octets":      {Sizes: []int{1515}},
		`family "ipv5"`:    {Families: []string{"ipv5"}},
		"-1 rounds":        {Rounds: -1},
		"9 rounds of -1ns": {Time: -1},
	} {
		if _, err := Run(context.Background(), opts); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one about %s", err, want)
		}
	}
}

// onBed runs do with a router for a case, whose way is what change makes of it.
func onBed(t *testing.T, name policy.BenchCase, change func(*way), do func(*bed) error) {
	t.Helper()
	needRoot(t)
	err := onOwnCore(func(c core) error {
		b, err := newBed(c, name, ipv4, false)
		if err != nil {
			return err
		}
		change(&b.way)
		return errors.Join(do(b), b.close())
	})
	if err != nil {
		t.Errorf("%s: %v", name, err)
	}
}

func asItIs(*way) {}

// TestPlayCounts: what is sent arrives, is counted once, and as what it is.
func TestPlayCounts(t *testing.T) {
	for name, want := range map[policy.BenchCase]bpf.GeneratorSeen{
		policy.BenchForward: bpf.GeneratorSeenSEEN_CLIENT, policy.BenchMasquerade: bpf.GeneratorSeenSEEN_UNIQUE,
		policy.BenchPinned: bpf.GeneratorSeenSEEN_VIP, policy.BenchOff: bpf.GeneratorSeenSEEN_UNIQUE,
	} {
		onBed(t, name, asItIs, func(b *bed) error {
			if err := b.establish(100); err != nil {
				return err
			}
			before, err := readSeen(b.programs.SeenOutside)
			if err != nil {
				return err
			}
			r, err := b.play(b.stream(100, false), 64, 3000)
			if err != nil || r.sent != 3000 || r.arrived != 3000 || r.busy <= 0 {
				t.Errorf("%s: %+v, %v, want 3000 packets", name, r, err)
			}
			after, err := readSeen(b.programs.SeenOutside)
			if got := after[want] - before[want]; got != 3000 {
				t.Errorf("%s: the sink counted %d of %s, want 3000", name, got, kindNames[want])
			}
			return err
		})
	}
}

// TestWrongRouter: a router that does not do what its case says gives no rate.
func TestWrongRouter(t *testing.T) {
	fails := func(name, want string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error with %q", name, err, want)
		}
	}
	// Nobody masquerades where the clients' addresses must not be seen.
	onBed(t, policy.BenchForward, func(w *way) { w.leaves = bpf.GeneratorSeenSEEN_UNIQUE }, func(b *bed) error {
		fails("no masquerade", "the client instead of the router", b.establish(1))
		return nil
	})
	// The pin is off where flows must be pinned, and the other way round.
	onBed(t, policy.BenchOff, func(w *way) { w.pin, w.leaves = pinOn, bpf.GeneratorSeenSEEN_VIP }, func(b *bed) error {
		fails("pin off", "the router instead of the VIP", b.establish(1))
		return nil
	})
	onBed(t, policy.BenchPinned, func(w *way) { w.pin, w.leaves = pinOff, bpf.GeneratorSeenSEEN_UNIQUE }, func(b *bed) error {
		fails("pin on", "the VIP instead of the router", b.establish(1))
		return nil
	})
	// It forwards nothing.
	onBed(t, policy.BenchMasquerade, asItIs, func(b *bed) error {
		if err := in(b.router, func() error { return writeSysctl("net/ipv4/ip_forward", "0") }); err != nil {
			return err
		}
		err := b.establish(100)
		fails("no forwarding", "of 100 0 arrived", err)
		if !errors.Is(err, errLost) {
			t.Errorf("no forwarding: %v is not errLost", err)
		}
		return nil
	})
	// Answers to flows that nobody has.
	onBed(t, policy.BenchMasquerade, asItIs, func(b *bed) error {
		_, err := b.play(b.stream(100, true), 64, 100)
		fails("no flows", "of 100 0 arrived", err)
		return nil
	})
}

func TestJudgeCounters(t *testing.T) {
	counters := func(pinned, returned, off, backup uint64) loader.PinCounters {
		return loader.PinCounters{Pinned: pinned, Returned: returned, Unpinned: map[string]uint64{"off": off, "backup": backup}}
	}
	before := counters(10, 10, 10, 10)
	r := result{sent: 101, arrived: 100} // one got lost, before the pin or behind it
	for _, c := range []struct {
		on, back bool
		after    loader.PinCounters
		good     bool
	}{
		{true, false, counters(110, 10, 10, 10), true},
		{true, false, counters(111, 10, 10, 10), true},
		{true, false, counters(109, 10, 10, 10), false},  // one arrived that was not pinned
		{true, false, counters(112, 10, 10, 10), false},  // more than were sent
		{true, false, counters(110, 10, 11, 10), false},  // one was left alone
		{true, false, counters(10, 110, 10, 10), false},  // they came from the other side
		{true, true, counters(10, 110, 10, 10), true},    //
		{true, true, counters(10, 109, 10, 10), false},   // an answer that vippin did not see
		{false, false, counters(10, 10, 110, 10), true},  //
		{false, false, counters(10, 10, 10, 110), false}, // off for another reason
		{false, false, counters(11, 10, 110, 10), false}, // one was pinned
		{false, true, counters(10, 10, 10, 10), true},    //
		{false, true, counters(10, 11, 10, 10), false},   // an answer to the VIP
	} {
		if err := judgeCounters(before, c.after, c.on, c.back, r); (err == nil) != c.good {
			t.Errorf("on %v, back %v, %+v: %v", c.on, c.back, c.after, err)
		}
	}
}
