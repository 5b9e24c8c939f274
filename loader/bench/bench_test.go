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

	"github.com/vishvananda/netlink"

	"vippin/bpf"
	"vippin/loader"
	"vippin/policy"
)

// TestRun measures everything for a moment: every combination gets its row, and
// nothing is left behind. What the cases must have done is proved within Run.
func TestRun(t *testing.T) {
	needRoot(t)
	outAndBack := []policy.BenchDirection{policy.BenchOut, policy.BenchBack}
	testRun(t, Options{
		Settings: policy.BenchPlan(policy.BenchLists{Flows: []int{300}, Directions: outAndBack}, false), Rounds: 1, Time: 2 * time.Millisecond,
	})
	testRun(t, Options{
		Cases:    []policy.BenchCase{policy.BenchMasquerade, policy.BenchRedirect, policy.BenchDrop, policy.BenchFib, policy.BenchFast},
		Settings: policy.BenchPlan(policy.BenchLists{Flows: []int{1}, Families: []string{ipv6}, Sizes: []int{64, 1500}, Directions: outAndBack}, true),
		Rounds:   2, Time: time.Millisecond,
	})
}

func testRun(t *testing.T, opts Options) {
	t.Helper()
	last := Progress{}
	opts.Progress = func(p Progress) {
		if p.Done < last.Done {
			t.Errorf("progress goes back from %v to %v", last, p)
		}
		last = p
	}
	report, err := Run(context.Background(), opts)
	if err != nil {
		t.Fatal(err)
	}
	opts = opts.withDefaults()
	if want := len(opts.Cases) * len(opts.Settings); len(report.Rows) != want {
		t.Errorf("%d rows, want %d", len(report.Rows), want)
	}
	for _, r := range report.Rows {
		if r.Mpps <= 0 || r.Rounds != opts.Rounds || r.VsMasquerade == nil || r.VsRedirect == nil || r.OwnNs == nil || r.Kernel == "" {
			t.Errorf("row %+v", r)
		}
		if (r.FlowsPerS != nil) != (r.Direction == policy.BenchOut) || r.P50us == nil || r.P99us == nil || *r.P50us > *r.P99us {
			t.Errorf("%s %s: new flows %v, latency %v, %v", r.Case, r.Direction, r.FlowsPerS, r.P50us, r.P99us)
		}
		if fast := r.Case == policy.BenchFast; (r.FastShare != nil) != fast || (r.FlowBytes != nil) != fast {
			t.Errorf("%s: share of the fast path %v, octets a flow %v", r.Case, r.FastShare, r.FlowBytes)
		}
	}
	if last.Done < 0.999 || report.Machine == "" {
		t.Errorf("in the end %+v on %q", last, report.Machine)
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
		Cases: []policy.BenchCase{policy.BenchFast}, Rounds: 1_000_000, Time: time.Millisecond,
		Progress: func(p Progress) {
			if p.Done > 0 {
				cancel()
			}
		},
	}
	if _, err := Run(ctx, opts); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v, want %v", err, context.Canceled)
	}
	nothingLeft(t)
}

func TestOptions(t *testing.T) {
	with := func(change func(*policy.BenchSetting)) Options {
		s := policy.BenchSetting{Direction: policy.BenchOut, Flows: 1, Size: 64, Family: ipv4}
		change(&s)
		return Options{Settings: []policy.BenchSetting{s}}
	}
	for want, opts := range map[string]Options{
		`case "fast"`:        {Cases: []policy.BenchCase{"fast"}},
		`direction "up"`:     with(func(s *policy.BenchSetting) { s.Direction = "up" }),
		"0 flows":            with(func(s *policy.BenchSetting) { s.Flows = 0 }),
		"4000001 flows":      with(func(s *policy.BenchSetting) { s.Flows = 4_000_001 }),
		"63 octets":          with(func(s *policy.BenchSetting) { s.Size = 63 }),
		"1515 octets":        with(func(s *policy.BenchSetting) { s.Size = 1515 }),
		`family "ipv5"`:      with(func(s *policy.BenchSetting) { s.Family = "ipv5" }),
		"-1 rounds":          {Rounds: -1},
		"5 rounds of -1ns":   {Time: -1},
		"latency at 1 of":    {Load: 1},
		"latency at -0.5 of": {Load: -0.5},
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
		b, err := newBed(context.Background(), c, name, layout{family: ipv4, flows: 1000})
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

// wholly plays until no packet gets lost, as playAgain does, which lets one in a thousand go.
func wholly(packets uint64, play func() (result, error)) (r result, err error) {
	for range tries {
		if r, err = play(); r.arrived == packets || err != nil && !errors.Is(err, errLost) {
			break
		}
	}
	return r, err
}

// TestPlayCounts: what is sent arrives, is counted once, and as what it is.
func TestPlayCounts(t *testing.T) {
	for name, want := range map[policy.BenchCase]bpf.GeneratorSeen{
		policy.BenchDrop: bpf.GeneratorSeenSEEN_CLIENT, policy.BenchRedirect: bpf.GeneratorSeenSEEN_CLIENT, policy.BenchFib: bpf.GeneratorSeenSEEN_CLIENT,
		policy.BenchForward: bpf.GeneratorSeenSEEN_CLIENT, policy.BenchConntrack: bpf.GeneratorSeenSEEN_CLIENT,
		policy.BenchMasquerade: bpf.GeneratorSeenSEEN_UNIQUE, policy.BenchSNAT: bpf.GeneratorSeenSEEN_VIP, policy.BenchEmpty: bpf.GeneratorSeenSEEN_UNIQUE,
		policy.BenchPinned: bpf.GeneratorSeenSEEN_VIP, policy.BenchOff: bpf.GeneratorSeenSEEN_UNIQUE, policy.BenchFast: bpf.GeneratorSeenSEEN_VIP,
	} {
		onBed(t, name, asItIs, func(b *bed) error {
			if err := b.establish(100); err != nil {
				return err
			}
			var before seen
			r, err := wholly(3000, func() (r result, err error) {
				if before, err = readSeen(b.programs.SeenOutside); err != nil {
					return r, err
				}
				return b.play(b.stream(100, false), 64, 3000)
			})
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

// TestParts: flows that were learnt a part at a time are all forwarded by the fast path
// when conntrack knows none of them any more.
func TestParts(t *testing.T) {
	needRoot(t)
	const flows = 3 * ports / 2
	err := onOwnCore(func(c core) error {
		b, err := newBed(context.Background(), c, policy.BenchFast, layout{family: ipv4, flows: 2 * flows, part: ports})
		if err != nil {
			return err
		}
		defer func() { _ = b.close() }()
		if err := b.establish(flows); err != nil {
			return err
		}
		before, err := b.forwarded()
		if err != nil {
			return err
		}
		r, err := b.playAll(b.stream(flows, false), sizeMin, flows)
		if err != nil {
			return err
		}
		after, err := b.forwarded()
		if fast := after - before; err != nil || float64(fast) < 0.97*float64(r.arrived) {
			t.Errorf("%d of %d packets took the fast path: %v", fast, r.arrived, err)
		}
		return in(b.router, func() error {
			left, err := netlink.ConntrackTableList(netlink.ConntrackTable, netlink.FAMILY_V4)
			if slow := r.arrived - (after - before); err != nil || uint64(len(left)) > slow {
				t.Errorf("conntrack knows %d flows, of %d that took the stack: %v", len(left), slow, err)
			}
			return nil
		})
	})
	if err != nil {
		t.Error(err)
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
