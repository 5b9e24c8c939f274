// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"vippin/loader"
	"vippin/policy"
	"vippin/policy/vrrp"
)

// dryRun is the plan of check. A broken configuration is a finding, not a
// failure.
func (c *cli) dryRun() (policy.DryRun, error) {
	config, err := readConfig(c.configFile)
	if err != nil {
		return policy.DryRun{Errors: errorTexts(err)}, nil
	}
	observed, err := c.env.observe()
	if err != nil {
		return policy.DryRun{}, err
	}
	report := policy.DryRun{}
	toggles, err := toggleStore{dir: config.StateDir}.Load()
	if err != nil {
		report.Warnings = append(report.Warnings, err.Error())
	}
	plan := policy.MakePlan(config, toggles, observed, policy.Plan{})
	planned := planReport(plan, c.rolesNow(plan, observed))
	planned.Warnings = slices.Concat(report.Warnings, planned.Warnings, notYet(config))
	if !c.env.btf() {
		planned.Warnings = append(planned.Warnings, config.MarkWarnings()...)
	}
	planned.Warnings = append(planned.Warnings, c.fastpathWarnings(config, observed)...)
	return planned, nil
}

// fastpathWarnings foresees what keeps packets from taking the fast path, if they
// are to.
func (c *cli) fastpathWarnings(config *policy.Config, observed policy.Observed) []string {
	toggle, err := toggleStore{dir: config.StateDir}.LoadFastpath()
	var warnings []string
	if err != nil {
		warnings = append(warnings, err.Error())
	}
	if on, _ := policy.DecideFastpath(toggle, config.Fastpath.Enabled); !on {
		return warnings
	}
	if !c.env.btf() {
		return append(warnings, "there is no fast path: it needs a kernel with BTF (/sys/kernel/btf/vmlinux)")
	}
	return append(warnings, config.Fastpath.InterfaceWarnings(observed)...)
}

// rolesNow says what this router is by its addresses alone.
func (c *cli) rolesNow(plan policy.Plan, observed policy.Observed) map[uint32]policy.Role {
	tracker := vrrp.NewTracker(vrrp.Config{})
	now := c.env.monotonic()
	tracker.Update(now, plan)
	tracker.Observe(now, observed)
	return tracker.Pins()
}

// errorTexts lists what was joined or collected into one error.
func errorTexts(err error) []string {
	var many interface{ Unwrap() []error }
	if !errors.As(err, &many) {
		return []string{err.Error()}
	}
	var texts []string
	for _, one := range many.Unwrap() {
		texts = append(texts, errorTexts(one)...)
	}
	return texts
}

// planReport puts a plan into the words of check and reload.
func planReport(plan policy.Plan, roles map[uint32]policy.Role) policy.DryRun {
	groups := plan.GroupNames()
	report := policy.DryRun{OK: true, Warnings: plan.Warnings}
	for _, pin := range plan.Pins {
		if pin.Retired {
			continue
		}
		report.Pins = append(report.Pins, policy.PinState{
			VLAN: pin.VLAN, Name: pin.Name, Interface: pin.Interface, VIPs: pin.VIPs, Group: groups[pin.Group],
			Enabled: pin.Enabled, EnabledBy: pin.EnabledBy, Role: roles[pin.ID],
		})
	}
	return report
}

// loadPinned is "vippin load": everything that the daemon does at its start,
// once.
func (c *cli) loadPinned(ctx context.Context, master bool) (report policy.DryRun, tier string, err error) {
	config, p, err := c.strictConfig()
	if err != nil {
		return report, "", err
	}
	unlock, err := lockRunDir(ctx, p.runDir, c.env.pid)
	if err != nil {
		return report, "", whileRunning(err, `it has loaded the dataplane already, use "vippin reload"`)
	}
	defer unlock()
	toggles, togglesErr := toggleStore{dir: p.stateDir}.Load() // damaged: the configuration decides
	observed, err := c.env.observe()
	if err != nil {
		return report, "", err
	}
	d, err := c.env.load(loader.Options{
		BPFFS: p.bpffs, MaxFlows: config.Dataplane.MaxFlows, Log: c.env.logger(config.Log.Level),
	})
	if err != nil {
		return report, "", err
	}
	defer d.Close()
	plan, err := c.applyConfig(d, config, observed, toggles, master)
	if err != nil {
		return report, "", err
	}
	if _, err := d.Sweep(); err != nil {
		return report, "", fmt.Errorf("remove the mappings of ended connections: %w", err)
	}
	report = planReport(plan, nil)
	if report.Pins, err = d.PinStates(); err != nil {
		return report, "", err
	}
	report.Warnings = append(report.Warnings, roleWarnings(plan, master)...)
	report.Warnings = append(report.Warnings, marksWarnings(d, config)...)
	toggle, _ := toggleStore{dir: p.stateDir}.LoadFastpath()
	if on, _ := policy.DecideFastpath(toggle, config.Fastpath.Enabled); on {
		report.Warnings = append(report.Warnings, "there is no fast path without a daemon, which would notice changes: start \"vippin run\"")
	}
	if togglesErr != nil {
		report.Warnings = append(report.Warnings, togglesErr.Error())
	}
	return report, d.Tier(), nil
}

func (c *cli) applyConfig(d dataplane, config *policy.Config, observed policy.Observed, toggles policy.Toggles, master bool) (policy.Plan, error) {
	previous, err := d.Planned()
	if err != nil {
		return policy.Plan{}, err
	}
	plan := policy.MakePlan(config, toggles, observed, previous)
	if err := d.SetSettings(settingsOf(config)); err != nil {
		return plan, err
	}
	advertised := advertisedGroups(plan)
	for _, pin := range plan.Pins {
		role, fixed := policy.RoleBackup, false // the programs follow this router's own adverts
		if master && !advertised[pin.Group] {
			role, fixed = policy.RoleMaster, true
		}
		if err := d.SetRole(pin.ID, role, fixed); err != nil {
			return plan, fmt.Errorf("set role of pin %s: %w", pin.Key(), err)
		}
	}
	return plan, d.Apply(plan)
}

// advertisedGroups are the groups whose role the programs can read off this
// router's own adverts.
func advertisedGroups(plan policy.Plan) map[uint32]bool {
	groups := make(map[uint32]bool)
	for _, iface := range plan.Interfaces {
		for _, vrid := range iface.VRIDs {
			groups[vrid.Group] = true
		}
	}
	return groups
}

// roleWarnings names the pins that pin nothing unless adverts announce them.
func roleWarnings(plan policy.Plan, master bool) []string {
	advertised := advertisedGroups(plan)
	var warnings []string
	for _, pin := range plan.Pins {
		if pin.Retired || master || advertised[pin.Group] {
			continue
		}
		warnings = append(warnings, fmt.Sprintf(
			"pin %s has no vrid: without a daemon this router is MASTER only while adverts that announce its VIPs leave; "+
				"set vrid, run the daemon, or, without VRRP, use --master",
			pin.Key()))
	}
	return warnings
}

// unloadPinned is "vippin unload".
func (c *cli) unloadPinned(ctx context.Context, force bool) error {
	p, err := c.places()
	if err != nil {
		return err
	}
	unlock, err := lockRunDir(ctx, p.runDir, c.env.pid)
	if err != nil {
		return whileRunning(err, `stop it first ("systemctl stop vippin", or SIGTERM to that pid), then unload`)
	}
	defer unlock()
	d, err := c.openPinned(p)
	if errors.Is(err, errNoDaemon) {
		return fmt.Errorf("nothing to unload: nothing is loaded below %s", p.bpffs)
	}
	if err != nil {
		return err
	}
	defer d.Close()
	report, err := d.Unload(force)
	if err != nil {
		return err
	}
	if report.Broken > 0 {
		fmt.Fprintf(c.env.stderr, "vippin: %d connections could not be handed over and will break\n", report.Broken)
	}
	_, err = fmt.Fprintf(c.env.stdout, "unloaded; %d living connections keep the VIP (now conntrack's own)\n", report.Converted)
	return err
}
