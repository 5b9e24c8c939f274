// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"vippin/loader"
	"vippin/policy"
)

// pinning is vippin on the router, as the product loads it.
type pinning struct {
	dataplane *loader.Dataplane
	bpffs     string
	id        uint32 // of the one pin
}

// addPin loads vippin with one pin on the outside interface, as MASTER. Its
// BPF file system is in the thread's own mount namespace.
func (b *bed) addPin() error {
	if b.way.pin == noPin {
		return nil
	}
	if err := reportEvents(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", fmt.Sprintf("vpbench%d-", os.Getpid()))
	if err != nil {
		return fmt.Errorf("make a folder for the BPF file system: %w", err)
	}
	b.undo = append(b.undo, func() error { return os.RemoveAll(dir) })
	bpffs := filepath.Join(dir, "bpf")
	b.undo = append(b.undo, func() error { return unmount(bpffs) })
	dataplane, err := loader.Load(loader.Options{BPFFS: bpffs, MaxFlows: b.maxFlows()})
	if err != nil {
		return err
	}
	b.undo = append(b.undo, dataplane.Close)
	b.pin = &pinning{dataplane: dataplane, bpffs: bpffs}
	if err := dataplane.SetSettings(loader.Settings{Lease: lease}); err != nil {
		return err
	}
	return b.pin.apply(b.sides[outsideSide].name, b.vlan, b.vip, b.way.pin == pinOn)
}

// maxFlows is dataplane.max_flows: the default, or with room to spare.
func (b *bed) maxFlows() uint32 {
	const byDefault = 262_144
	return uint32(max(byDefault, b.flows+b.flows/4))
}

// reportEvents makes conntrack report events, as the daemon does: its entries are
// larger for it, and every packet looks for some.
func reportEvents() error { return writeSysctl("net/netfilter/nf_conntrack_events", "1") }

// unmount takes a BPF file system away and with it what was pinned there.
func unmount(dir string) error {
	err := unix.Unmount(dir, 0)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

func (p *pinning) apply(wan string, vlan policy.VLAN, vip netip.Addr, on bool) error {
	cfg := policy.DefaultConfig("", "bench")
	cfg.Pins = []policy.PinConfig{{VLAN: vlan, Interface: wan, VIPs: []netip.Addr{vip}, Enabled: true}}
	seen, err := loader.Observe()
	if err != nil {
		return err
	}
	plan := policy.MakePlan(cfg, nil, seen, policy.Plan{})
	if len(plan.Pins) != 1 || len(plan.Warnings) > 0 {
		return fmt.Errorf("plan one pin: there are %d, with warnings %q", len(plan.Pins), plan.Warnings)
	}
	p.id = plan.Pins[0].ID
	if err := p.dataplane.SetRole(p.id, policy.RoleMaster, true); err != nil {
		return err
	}
	if err := p.dataplane.Apply(plan); err != nil {
		return err
	}
	if on {
		return nil
	}
	// As the daemon leaves a pin that is off.
	pin := plan.Pins[0]
	pin.Enabled, pin.EnabledBy = false, policy.EnabledByToggle
	return errors.Join(p.dataplane.Switch([]policy.PlanPin{pin}), p.dataplane.Rest())
}

func (p *pinning) counters() (loader.PinCounters, error) {
	all, err := p.dataplane.PinCounters()
	return all[p.id], err
}
