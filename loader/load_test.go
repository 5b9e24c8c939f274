// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"vippin/policy"
)

// TestLoad is what every supported kernel must pass: all programs load, and are
// attached to an interface. The VM smoke test runs it by this name.
func TestLoad(t *testing.T) {
	enterNamespace(t)
	ifindex := addVeth(t, "wan0", "wan1")
	dir := testBPFFS(t)
	d := mustLoad(t, Options{BPFFS: dir})
	mustApply(t, d, onePin(ifindex, "wan0", true))
	on, err := d.attached(ifindex)
	if err != nil || !on {
		t.Fatalf("attached: %v, %v", on, err)
	}
	t.Logf("tier %s", d.Tier())
	stat, err := os.Stat(dir)
	if err != nil || stat.Mode().Perm() != 0o700 {
		t.Errorf("bpffs directory: %v, %v, want mode 0700", stat.Mode(), err)
	}
	report, err := d.Unload(false)
	if err != nil || report != (UnloadReport{}) {
		t.Fatalf("unload: %+v, %v", report, err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after unload %s is still there: %v", dir, err)
	}
	if on, err := d.attached(ifindex); err != nil || on {
		t.Errorf("after unload attached: %v, %v", on, err)
	}
}

func TestOpenNothing(t *testing.T) {
	if _, err := Open(filepath.Join(bpffsRoot, "vptest-none")); !errors.Is(err, ErrNotLoaded) {
		t.Errorf("open nothing: %v, want ErrNotLoaded", err)
	}
}

// linkState is what identifies an attachment.
func linkState(t *testing.T, d *Dataplane, ifindex int, h hook) (link.ID, ebpf.ProgramID) {
	t.Helper()
	l, err := link.LoadPinnedLink(d.linkPath(ifindex, h), nil)
	if err != nil {
		t.Fatalf("open link: %v", err)
	}
	defer func() { _ = l.Close() }()
	info, err := l.Info()
	if err != nil {
		t.Fatal(err)
	}
	return info.ID, info.Program
}

// TestTakeover: what a process leaves, the next one finds: mappings, toggles,
// attachments, whose programs it replaces in place.
func TestTakeover(t *testing.T) {
	enterNamespace(t)
	ifindex := addVeth(t, "wan0", "wan1")
	opts := Options{BPFFS: testBPFFS(t)}
	first := mustLoad(t, opts)
	mustApply(t, first, onePin(ifindex, "wan0", true))
	key, end := testMapping(t, first, 4000)
	linkBefore, programBefore := linkState(t, first, ifindex, egressHook)
	if err := first.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}

	var log logBuffer
	opts.MaxFlows, opts.Log = 1000, log.logger()
	second := mustLoad(t, opts)
	var got publicEnd
	if err := second.maps.ByLocal.Lookup(key, &got); err != nil || got != end {
		t.Errorf("mapping after takeover: %+v, %v, want %+v", got, err, end)
	}
	linkAfter, programAfter := linkState(t, second, ifindex, egressHook)
	if linkAfter != linkBefore {
		t.Errorf("link %d became %d: the program was attached anew", linkBefore, linkAfter)
	}
	if own, err := programID(second.egress); err != nil || programAfter != own || programAfter == programBefore {
		t.Errorf("program %d became %d, want %d (%v)", programBefore, programAfter, own, err)
	}
	contains(t, log.String(), "the size of a map is kept")
	plan, err := second.Planned()
	if err != nil || len(plan.Pins) != 1 || !plan.Pins[0].Enabled {
		t.Errorf("plan after takeover: %+v, %v", plan, err)
	}
	opened, err := Open(opts.BPFFS)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	defer func() { _ = opened.Close() }()
	if err := opened.maps.ByLocal.Lookup(key, &got); err != nil {
		t.Errorf("mapping after open: %v", err)
	}
	if opened.Tier() != second.Tier() {
		t.Errorf("tier %q, opened %q", second.Tier(), opened.Tier())
	}
}

// testMapping inserts a TCP mapping of pin 1, slot 1: local 198.51.100.3:port,
// public 198.51.100.2:port, remote 203.0.113.9:443.
func testMapping(t *testing.T, d *Dataplane, port uint16) (flowKey, publicEnd) {
	t.Helper()
	self, vip, remote := addrs("198.51.100.3")[0], addrs("198.51.100.2")[0], addrs("203.0.113.9")[0]
	key := newFlowKey(1, 6, addrPort(self, port), addrPort(remote, 443))
	end := publicEnd{Port: swapPort(port), Pin: 1}
	end.Addr.Word = addrWords(vip)
	local := localEnd{Port: swapPort(port), Pin: 1, BornNs: 5}
	local.Addr.Word = addrWords(self)
	if err := errors.Join(d.maps.ByPublic.Put(publicKey(key, &end), local), d.maps.ByLocal.Put(key, end)); err != nil {
		t.Fatalf("insert mapping: %v", err)
	}
	return key, end
}

func TestIncompatibleMap(t *testing.T) {
	enterNamespace(t)
	for _, test := range []struct {
		name string
		err  string // "": taken in stride
	}{
		{"by_local", `take over map by_local in`},
		{"pin_counters", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := testBPFFS(t)
			mustLoad(t, Options{BPFFS: dir}) // mounts bpffs
			if err := os.Remove(filepath.Join(dir, test.name)); err != nil {
				t.Fatal(err)
			}
			other, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = other.Close() }()
			if err := other.Pin(filepath.Join(dir, test.name)); err != nil {
				t.Fatal(err)
			}
			d, err := Load(Options{BPFFS: dir})
			if test.err == "" {
				if err != nil {
					t.Fatalf("load: %v", err)
				}
				if _, err := d.PinCounters(); err != nil {
					t.Errorf("counters: %v", err)
				}
				_ = d.Close()
				return
			}
			if err == nil {
				t.Fatal("loaded over a map of another layout")
			}
			contains(t, err.Error(), test.err)
			contains(t, err.Error(), `run "vippin unload"`)
		})
	}
}

// TestForeignTCX: other people's programs on the same hooks stay, run, and sit on
// the system's side of ours.
func TestForeignTCX(t *testing.T) {
	enterNamespace(t)
	ifindex := addVeth(t, "wan0", "wan1")
	foreign := countingProgram(t)
	for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
		l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: foreign.program, Attach: at})
		if errors.Is(err, ebpf.ErrNotSupported) {
			t.Skip("this kernel has no tcx (Linux 6.6)")
		}
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
	}
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	mustApply(t, d, onePin(ifindex, "wan0", true))
	theirs, err := programID(foreign.program)
	if err != nil {
		t.Fatal(err)
	}
	check := func(h hook, want ...*ebpf.Program) {
		t.Helper()
		result, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: h.attach})
		if err != nil {
			t.Fatal(err)
		}
		var got, ids []ebpf.ProgramID
		for _, p := range result.Programs {
			got = append(got, p.ID)
		}
		for _, p := range want {
			id, err := programID(p)
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
		if !slices.Equal(got, ids) {
			t.Errorf("%s programs %v, want %v (theirs is %d)", h.name, got, ids, theirs)
		}
	}
	check(ingressHook, d.ingress, foreign.program)
	check(egressHook, foreign.program, d.egress)
	before := foreign.count(t)
	sendSome(t, "wan0")
	if foreign.count(t) == before {
		t.Error("the other program no longer runs")
	}
	mustApply(t, d, policy.Plan{})
	check(ingressHook, foreign.program)
	check(egressHook, foreign.program)
}

// counting is a tc program that counts what it sees and passes it on.
type counting struct {
	program *ebpf.Program
	packets *ebpf.Map
}

func countingProgram(t *testing.T) counting {
	t.Helper()
	packets, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "foreign", Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.StoreImm(asm.RFP, -4, 0, asm.Word),
			asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4),
			asm.LoadMapPtr(asm.R1, packets.FD()), asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.Mov.Imm(asm.R1, 1), asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R0, -1).WithSymbol("out"), // TC_ACT_UNSPEC
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatalf("load the other program: %v", err)
	}
	t.Cleanup(func() { _ = program.Close(); _ = packets.Close() })
	return counting{program, packets}
}

func (c counting) count(t *testing.T) (n uint64) {
	t.Helper()
	if err := c.packets.Lookup(uint32(0), &n); err != nil {
		t.Fatal(err)
	}
	return n
}
