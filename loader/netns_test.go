// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"vippin/policy"
)

// Thread discipline: a test that calls enterNamespace runs on a thread of its
// own, which is in a network namespace of its own until the test ends. What runs
// in another goroutine enters with inNamespace.

func enterNamespace(t testing.TB) netns.NsHandle {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make network namespaces and load BPF programs")
	}
	runtime.LockOSThread()
	before, err := netns.Get()
	if err != nil {
		t.Fatalf("open network namespace: %v", err)
	}
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	t.Cleanup(func() {
		if err := netns.Set(before); err != nil {
			t.Errorf("return from network namespace: %v", err)
			return // and let the thread die with the test
		}
		_ = before.Close()
		_ = ns.Close()
		runtime.UnlockOSThread()
	})
	up(t, "lo")
	return ns
}

// inNamespace runs do in a namespace, on a thread that ends with it.
func inNamespace(ns netns.NsHandle, do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		if err := netns.Set(ns); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- do()
	}()
	return <-done
}

func up(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatalf("find %s: %v", name, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		t.Fatalf("set %s up: %v", name, err)
	}
	return l
}

// addVeth makes a pair and returns the first end's index.
func addVeth(t testing.TB, name, peer string) int {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: peer}); err != nil {
		t.Fatalf("add veth %s: %v", name, err)
	}
	up(t, peer)
	return up(t, name).Attrs().Index
}

var directories atomic.Int32

// testBPFFS is a directory of the test's own, which is gone after it.
func testBPFFS(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(bpffsRoot, fmt.Sprintf("vptest%d-%d", os.Getpid(), directories.Add(1)))
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("remove %s: %v", dir, err)
		}
	})
	return dir
}

// logBuffer collects log lines.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func (b *logBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(b, nil)) }

func mustLoad(t testing.TB, opts Options) *Dataplane {
	t.Helper()
	if opts.MaxFlows == 0 {
		opts.MaxFlows = 4096 // the maps take their memory at once
	}
	d, err := Load(opts)
	if err != nil {
		t.Fatalf("load: %+v", err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func mustApply(t testing.TB, d *Dataplane, plan policy.Plan) {
	t.Helper()
	if err := d.Apply(plan); err != nil {
		t.Fatalf("apply: %v", err)
	}
}

func addrs(list ...string) (out []netip.Addr) {
	for _, text := range list {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}

// onePin is a plan of one pin, number 1 in slot 1, on an interface.
func onePin(ifindex int, name string, enabled bool) policy.Plan {
	return policy.Plan{
		Groups: []policy.PlanGroup{{ID: 1, Name: "core"}},
		Pins: []policy.PlanPin{{
			ID: 1, Slot: 1, Group: 1, VLAN: policy.VLAN{Outer: 2}, Interface: name, Ifindex: ifindex,
			VIP4: netip.MustParseAddr("198.51.100.2"), VIPs: addrs("198.51.100.2"), Enabled: enabled,
		}},
		Interfaces: []policy.PlanInterface{{
			Index: ifindex, Name: name, Slot: 1, HasL2: true,
			Uniques: addrs("198.51.100.3"), VIPs: addrs("198.51.100.2"),
			Sources: []policy.PlanSource{{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Pin: 1}, {Prefix: netip.MustParsePrefix("::/0"), Pin: 1}},
		}},
	}
}

func contains(t *testing.T, text, want string) {
	t.Helper()
	if !strings.Contains(text, want) {
		t.Errorf("%q does not contain %q", text, want)
	}
}

func possibleCPUs() int { return ebpf.MustPossibleCPU() }
