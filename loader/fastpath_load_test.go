// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"vippin/bpf"
	"vippin/policy"
)

func stateOf(t *testing.T, f *Fastpath) (state bpf.FastpathFastState) {
	t.Helper()
	if err := f.maps.State.Lookup(uint32(0), &state); err != nil {
		t.Fatal(err)
	}
	return state
}

// TestFastpathRestart: tables, numbers and attachments outlive the process, and
// the next one puts its programs in their place. It is closed until that one
// opens it, from the dataplane's loading on.
func TestFastpathRestart(t *testing.T) {
	eachTier(t, func(t *testing.T, d *Dataplane) {
		lan, wan := cable(t, "lan0", "lan1"), cable(t, "wan0", "wan1")
		first := mustFastpath(t, d, FastpathOptions{})
		mustAttach(t, first, "wan0", "lan0")
		if err := first.SetOpen(true); err != nil {
			t.Fatal(err)
		}
		before := stateOf(t, first)
		if before.Generation == 0 || before.Keys == (fastKeys{}) || before.LeaseNs == 0 || before.PaceNs == 0 || before.All != 0 {
			t.Errorf("state %+v", before)
		}
		bucket := bpf.FastpathFast4Bucket{}
		bucket.Way[0].Addrs = 77
		if err := first.maps.Fast4.Put(uint32(5), bucket); err != nil {
			t.Fatal(err)
		}
		numbers, link, program := devicesOf(t, first), xdpLinkID(t, d, wan), mustReadXDP(t, wan).program
		if err := errors.Join(first.Close(), d.Close()); err != nil {
			t.Fatal(err)
		}

		d = mustLoad(t, Options{BPFFS: d.dir, noTCX: d.noTCX})
		opened, err := d.OpenFastpath()
		if err != nil {
			t.Fatal(err)
		}
		if state := stateOf(t, opened); state.Generation != 0 || state.Keys != before.Keys {
			t.Errorf("after loading the dataplane anew: %+v, want it closed", state)
		}
		if err := opened.Close(); err != nil {
			t.Fatal(err)
		}
		second := mustFastpath(t, d, FastpathOptions{All: true})
		if state := stateOf(t, second); state.Generation != 0 || state.Keys != before.Keys || state.All != 1 {
			t.Errorf("after loading anew: %+v, want it closed, with the keys %x", state, before.Keys)
		}
		if devices := devicesOf(t, second); len(devices) != 0 {
			t.Errorf("before Attach the devices are %v", devices)
		}
		own, err := programID(second.forward)
		if now := mustReadXDP(t, wan).program; err != nil || now != own || now == program {
			t.Errorf("wan0 has program %d, before %d, want %d (%v)", now, program, own, err)
		}
		if err := d.SetSettings(Settings{Lease: 5 * time.Second}); err != nil {
			t.Fatal(err)
		}
		mustAttach(t, second, "lan0", "wan0")
		if lease := time.Duration(stateOf(t, second).LeaseNs); lease != 5*time.Second {
			t.Errorf("lease %v, want 5 s", lease)
		}
		if now := xdpLinkID(t, d, wan); now != link || now == 0 {
			t.Errorf("link %d became %d", link, now)
		}
		for _, ifindex := range []int{lan, wan} {
			if now := devicesOf(t, second)[uint32(ifindex)]; now != numbers[uint32(ifindex)] {
				t.Errorf("%d was %+v, is %+v", ifindex, numbers[uint32(ifindex)], now)
			}
		}
		var kept bpf.FastpathFast4Bucket
		if err := second.maps.Fast4.Lookup(uint32(5), &kept); err != nil || kept.Way[0].Addrs != 77 {
			t.Errorf("the table was not kept: %+v, %v", kept.Way[0], err)
		}
		wantLearner(t, second, wan)
	})
}

func mustReadXDP(t *testing.T, ifindex int) xdpOf {
	t.Helper()
	on, err := readXDP(ifindex)
	if err != nil {
		t.Fatal(err)
	}
	return on
}

// hasTCX tells whether this kernel has tcx (Linux 6.6), and the test uses it.
func hasTCX(d *Dataplane) bool {
	if d.noTCX {
		return false
	}
	_, err := link.QueryPrograms(link.QueryOptions{Target: 1, Attach: learnHook.attach})
	return err == nil
}

// wantLearner wants the program that learns to be this one, last at egress.
func wantLearner(t *testing.T, f *Fastpath, ifindex int) {
	t.Helper()
	want, err := programID(f.learn)
	if err != nil {
		t.Fatal(err)
	}
	if !hasTCX(f.plane) {
		list, err := filters(ifindex, learnHook)
		if err != nil || len(list) == 0 {
			t.Fatalf("filters at egress: %v, %v", list, err)
		}
		last := list[0].(*netlink.BpfFilter)
		for _, filter := range list {
			if filter.Attrs().Priority > last.Priority {
				last = filter.(*netlink.BpfFilter)
			}
		}
		if last.Id != int(want) {
			t.Errorf("the last filter at egress is %s, program %d, want %d", last.Name, last.Id, want)
		}
		return
	}
	there, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: learnHook.attach})
	if err != nil || len(there.Programs) == 0 {
		t.Fatalf("programs at egress: %v, %v", there, err)
	}
	if last := there.Programs[len(there.Programs)-1]; last.ID != want {
		t.Errorf("the last program at egress is %d, want %d", last.ID, want)
	}
}

// TestFastpathOrder: what learns runs after vippin_egress, whichever came first,
// and where an earlier version's filter has the last priority.
func TestFastpathOrder(t *testing.T) {
	eachTier(t, func(t *testing.T, d *Dataplane) {
		wan := cable(t, "wan0", "wan1")
		f := mustFastpath(t, d, FastpathOptions{})
		mustAttach(t, f, "wan0")
		wantLearner(t, f, wan)
		mustApply(t, d, onePin(wan, "wan0", true))
		mustAttach(t, f, "wan0")
		wantLearner(t, f, wan)
		mustApply(t, d, policy.Plan{})
		wantLearner(t, f, wan)
		mustAttach(t, f)
		mustKind(t, wan, "")
		mustApply(t, d, onePin(wan, "wan0", true))
		if !hasTCX(d) {
			setEgressPriority(t, d, wan, 0xffff)
		}
		mustAttach(t, f, "wan0")
		wantLearner(t, f, wan)
		wantAttached(t, d, wan, true, "wan0")
		list, err := filters(wan, egressHook)
		if want := map[bool]int{true: 0, false: 2}[hasTCX(d)]; err != nil || len(list) != want {
			t.Errorf("filters at egress %v, %v, want %d", list, err, want)
		}
	})
}

// setEgressPriority moves vippin_egress to where an earlier version put it.
func setEgressPriority(t *testing.T, d *Dataplane, ifindex, priority int) {
	t.Helper()
	filter, err := findFilter(ifindex, egressHook)
	if err == nil {
		old := egressHook
		old.priority = priority
		err = d.moveFilter(filter, old)
	}
	if err != nil {
		t.Fatal(err)
	}
	if filter, err := findFilter(ifindex, egressHook); err != nil || filter.Priority != uint16(priority) {
		t.Fatalf("filter %+v, %v", filter, err)
	}
}

// TestFastpathUnload: unloading leaves nothing of it, and so does Remove of what
// another version left.
func TestFastpathUnload(t *testing.T) {
	eachTier(t, func(t *testing.T, d *Dataplane) {
		wan, lan := cable(t, "wan0", "wan1"), cable(t, "lan0", "lan1")
		f := mustFastpath(t, d, FastpathOptions{})
		mustAttach(t, f, "wan0", "lan0")
		mustApply(t, d, onePin(wan, "wan0", true))
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Unload(false); err != nil {
			t.Fatalf("unload: %v", err)
		}
		for _, ifindex := range []int{wan, lan} {
			if on := mustReadXDP(t, ifindex); on != (xdpOf{}) {
				t.Errorf("interface %d has %+v", ifindex, on)
			}
			mustKind(t, ifindex, "")
			if !hasTCX(d) {
				continue
			}
			there, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: learnHook.attach})
			if err != nil || len(there.Programs) != 0 {
				t.Errorf("interface %d has at egress %v, %v", ifindex, there, err)
			}
		}
		if _, err := os.Stat(d.dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", d.dir, err)
		}
	})
}

// TestFastpathOtherTables: tables of another size or layout are not taken over,
// nor are the others then, which speak of them; it works all the same, and what
// another version left can be removed.
func TestFastpathOtherTables(t *testing.T) {
	enterNamespace(t)
	wan := cable(t, "wan0", "wan1")
	var log logBuffer
	d, first := newFastpath(t, FastpathOptions{Flows: 1000})
	if got, want := int(first.maps.Fast4.MaxEntries())*fastWays, 2048; got != want {
		t.Errorf("room for %d directions, want %d", got, want)
	}
	mustAttach(t, first, "wan0")
	if err := first.SetOpen(true); err != nil {
		t.Fatal(err)
	}
	keys := stateOf(t, first).Keys
	second := mustFastpath(t, d, FastpathOptions{Flows: 3000, Log: log.logger()})
	contains(t, log.String(), "tables start anew")
	if state := stateOf(t, second); state.Keys == keys || state.Keys == (fastKeys{}) {
		t.Errorf("keys %x, of the old tables %x", state.Keys, keys)
	}
	if state := stateOf(t, first); state.Generation != 0 {
		t.Errorf("the old tables are open: %+v", state)
	}
	if devices := mustAttach(t, second, "wan0"); devices[0].Mode != "native" {
		t.Errorf("devices %+v", devices)
	}
	other, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err == nil {
		defer func() { _ = other.Close() }()
		err = pinAside(other, filepath.Join(d.dir, bpf.FastpathMapFastState))
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.OpenFastpath(); err == nil || errors.Is(err, ErrNotLoaded) {
		t.Errorf("open another version's: %v", err)
	}
	if err := d.RemoveFastpath(); err != nil {
		t.Errorf("remove another version's: %v", err)
	}
	if on := mustReadXDP(t, wan); on != (xdpOf{}) {
		t.Errorf("wan0 has %+v", on)
	}
	if err := d.RemoveFastpath(); err != nil {
		t.Errorf("remove nothing: %v", err)
	}
}

// TestFastpathUnsupported: without BTF, or where a program is refused, the error
// says so and the dataplane goes on.
func TestFastpathUnsupported(t *testing.T) {
	enterNamespace(t)
	wan := addVeth(t, "wan0", "wan1")
	d := mustLoad(t, Options{BPFFS: testBPFFS(t), noBTF: true})
	mustApply(t, d, onePin(wan, "wan0", true))
	var unsupported *UnsupportedError
	if _, err := d.NewFastpath(FastpathOptions{Flows: 1000}); !errors.As(err, &unsupported) {
		t.Fatalf("without BTF: %v, want an UnsupportedError", err)
	}
	contains(t, unsupported.Missing, "BTF")
	wantAttached(t, d, wan, true, "wan0")
	if _, err := d.OpenFastpath(); !errors.Is(err, ErrNotLoaded) {
		t.Errorf("open: %v, want ErrNotLoaded", err)
	}
	refused := &ebpf.VerifierError{Cause: errors.New("invalid argument"), Log: []string{"R1 is bad"}}
	if err := explainFastpath(refused, slog.New(slog.DiscardHandler)); !errors.As(err, &unsupported) {
		t.Errorf("refused: %v, want an UnsupportedError", err)
	}
}

// TestFastpathState: what there is to show, and every exit has a name.
func TestFastpathState(t *testing.T) {
	for i, name := range exitNames {
		if name == "" {
			t.Errorf("exit %d has no name", i)
		}
	}
	for i, name := range refusalNames {
		if name == "" {
			t.Errorf("refusal %d has no name", i)
		}
	}
	enterNamespace(t)
	cable(t, "wan0", "wan1")
	d, f := newFastpath(t, FastpathOptions{All: true, Flows: 1000})
	mustAttach(t, f, "wan0", "ppp0")
	sums := make([]uint64, possibleCPUs())
	sums[0], sums[len(sums)-1] = 3, 4
	if err := f.maps.Counters.Put(uint32(bpf.FastpathFastExitFAST_TTL), sums); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.SetOpen(true), d.Heartbeat(Monotonic())); err != nil {
		t.Fatal(err)
	}
	state, err := f.State()
	if err != nil {
		t.Fatal(err)
	}
	if !state.Open || state.Closed != "" || !state.All || state.Generation == 0 || state.Capacity != 2048 || len(state.Interfaces) != 2 {
		t.Errorf("state %+v", state)
	}
	if want := uint64(3 * 2048 * 64); state.MemoryBytes < want || state.MemoryBytes > 30<<20 {
		t.Errorf("memory %d, want %d or more", state.MemoryBytes, want)
	}
	if got, want := state.Packets["ttl"], uint64(7); len(sums) > 1 && got != want {
		t.Errorf("packets with a low TTL: %d, want %d", got, want)
	}
	if err := d.Heartbeat(Monotonic() - defaultLease - time.Second); err != nil {
		t.Fatal(err)
	}
	if state, err = f.State(); err != nil || state.Open || state.Closed == "" {
		t.Errorf("the daemon is dead: %+v, %v", state, err)
	}
}
