// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io/fs"

	"github.com/spf13/cobra"

	"vippin/loader"
	"vippin/policy"
	"vippin/policy/doctor"
)

func (c *cli) doctor() *cobra.Command {
	return c.withJSON(&cobra.Command{
		Use: "doctor", Short: "Look for what keeps connections from being pinned", GroupID: "show",
		Long: `Look at everything that breaks address pinning in practice, and say what was
found and what to do about it: the kernel and its settings, NAT rules, flow
tables, interfaces and VIPs, VRRP adverts interface by interface, virtual MACs
and what the hypervisor does to them, limits that are near, connections that
had to stay unpinned.

Remedies are lines to be pasted, with explanations behind "#". Nothing is
changed and nothing is sent. It works without a daemon too, but roles and
adverts are known to the daemon alone; NAT rules and maps are read by root.

Exit code 0: nothing was found. 1: there is a warning or an error.`,
		Example: `  vippin doctor
  vippin doctor -j | jq -r '.[] | select(.state != "ok") | "\(.check): \(.found)"'`,
		Args: cobra.NoArgs,
		RunE: c.verb(func(ctx context.Context, _ []string) error {
			facts, err := c.doctorFacts(ctx)
			if err != nil {
				return err
			}
			findings := doctor.Examine(facts)
			if c.json {
				err = printJSON(c.env.stdout, findings)
			} else {
				err = showFindings(newOutput(c.env), findings)
			}
			if err == nil && !doctor.Healthy(findings) {
				return silentExit(exitFailed)
			}
			return err
		}),
	})
}

// doctorFacts asks the daemon, the pinned maps and the kernel. What one of them
// does not tell is a finding, not a failure.
func (c *cli) doctorFacts(ctx context.Context) (doctor.Facts, error) {
	p, err := c.places()
	if err != nil {
		return doctor.Facts{}, err
	}
	facts := doctor.Facts{Config: p.config, Node: defaultConfig().Node}
	if p.problem != nil {
		facts.ConfigErrors, facts.NoConfig = errorTexts(p.problem), errors.Is(p.problem, fs.ErrNotExist)
	}
	if p.config != nil {
		facts.Node = p.config.Node
	}
	if facts.Observed, err = c.env.observe(); err != nil {
		return facts, err
	}
	client := newClient(c.env, p.runDir)
	c.askDaemon(ctx, client, &facts)
	planned := c.askMaps(p, &facts)
	facts.Plan = planned
	if p.config != nil {
		toggles, err := toggleStore{dir: p.stateDir}.Load()
		if err != nil { // the daemon, which warns of it, goes by the configuration too
			toggles = policy.Toggles{}
		}
		facts.Plan = policy.MakePlan(p.config, toggles, facts.Observed, planned)
	}
	facts.Machine = c.env.machine(loader.MachineOptions{
		BPFFS: p.bpffs, DaemonPID: c.daemonPID(ctx, client), Interfaces: interfacesOf(facts.Plan, facts.Observed),
	})
	return facts, nil
}

func (c *cli) askDaemon(ctx context.Context, client *client, facts *doctor.Facts) {
	status, err := client.Status(ctx)
	if errors.Is(err, errNoDaemon) {
		return
	}
	var routers []policy.VRRPStatus
	if err == nil {
		routers, err = client.VRRP(ctx)
	}
	if err != nil {
		facts.DaemonError = err.Error()
		return
	}
	facts.Daemon = &doctor.Daemon{Status: status, VRRP: routers}
	facts.Pins, facts.WithoutPin, facts.Tier = filled(status.Pins), status.UnpinnedWithoutPin, status.Tier
}

// askMaps returns the plan in force, and takes from the maps what no daemon
// has said.
func (c *cli) askMaps(p places, facts *doctor.Facts) policy.Plan {
	d, err := c.env.open(p.bpffs)
	if err != nil {
		return policy.Plan{} // loader.Machine says why
	}
	defer d.Close()
	if facts.Daemon == nil {
		facts.Tier = d.Tier()
		if pins, err := d.PinStatus(); err == nil {
			facts.Pins = filled(pins)
		}
	}
	planned, err := d.Planned()
	if err != nil {
		return policy.Plan{}
	}
	return planned
}

// daemonPID asks the kernel who listens on the control socket, 0 if nobody.
func (c *cli) daemonPID(ctx context.Context, client *client) int {
	conn, err := c.env.dial(ctx, client.path)
	if err != nil {
		return 0
	}
	defer conn.Close()
	return int(callerOf(conn).pid)
}

// interfacesOf lists those whose settings matter: with a pin or VRRP, and those
// with a MAC of their own over another one, and the one below, inside too.
func interfacesOf(plan policy.Plan, observed policy.Observed) []string {
	watched := make(map[int]bool)
	for _, planned := range plan.Interfaces {
		watched[planned.Index] = true
	}
	for _, link := range observed.Links {
		if link.Kind == "macvlan" {
			watched[link.Parent] = true
		}
	}
	var names []string
	for _, link := range observed.Links {
		if watched[link.Index] || link.Kind == "macvlan" {
			names = append(names, link.Name)
		}
	}
	return names
}
