// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"vippin/loader"
	"vippin/policy"
)

func (c *cli) fastpath() *cobra.Command {
	fastpath := &cobra.Command{
		Use: "fastpath", Short: "Show the fast path, switch it on and off", GroupID: "change",
		Long: `The fast path forwards packets of established connections before they reach the
kernel's stack: translated as conntrack translates them, routed as the stack
routed them last. What it learns it learns from packets that took the stack, and
it learns anew as soon as routes, neighbours, firewall rules, pins or roles
change. It works on the devices of fastpath.interfaces, while the daemon runs.`,
		Example: `  vippin fastpath ls
  vippin fastpath on`,
		Args: noVerb,
		RunE: needsVerb,
	}
	fastpath.AddCommand(
		c.fastpathList(),
		c.fastpathSwitch(toggleOn, "Let established connections take the fast path",
			"Let established connections take the fast path, whatever the configuration says."),
		c.fastpathSwitch(toggleOff, "Let every packet take the stack",
			"Let every packet take the stack, whatever the configuration says, and take the\nfast path's programs and tables away."),
		c.fastpathSwitch(toggleReset, "Let the configuration decide again",
			"Forget what was toggled: fastpath.enabled decides again."),
	)
	return fastpath
}

func (c *cli) fastpathList() *cobra.Command {
	return c.withJSON(&cobra.Command{
		Use: "ls", Aliases: []string{"list", "show"}, Short: "Show the fast path",
		Long: `Show whether the fast path is on and forwards, on which interfaces, how many
connections it knows, and what became of the packets that came in there.

Packets take the stack because of:

    closed         the fast path is closed, or the daemon gives no sign of life
    device         the interface does not take it any more
    not_ip         something else than IP
    other_host     the frame is not to the interface's own MAC, nor to a virtual
                   one that this router holds as MASTER
    protocol       neither TCP nor UDP, or IPv6 extension headers
    options        IPv4 options
    fragment       a fragment
    ttl            the TTL runs out
    flags          SYN, FIN or RST
    miss           the connection is not known: it is young, or cannot be learnt
    stale          something changed since it was learnt
    recheck        it is its turn to ask the firewall again
    drift          TCP, too far from what conntrack saw last
    hop_gone       the neighbour changed, or is gone
    too_big        larger than the MTU there
    no_room        no room for another VLAN tag

A packet that takes the stack and leaves by one of the interfaces shows how its
connection is forwarded. It teaches nothing because of:

    no_note           it did not come in there: tags may be stripped by the NIC
    generation        something changed while it was under way
    no_conntrack      conntrack does not know it
    not_established   there was no answer yet, or it is ending
    helper            a conntrack helper, zone or offload has to do with it
    not_liberal       TCP: conntrack is being told to watch its windows no more
    not_pinned        it is not pinned, and fastpath.all is false
    not_acked         sync.mode strict: the peer does not have it yet
    changed           it was changed by more than conntrack and routing
    packet            this one alone does not qualify
    full              no room

It works without a daemon too, but nothing is forwarded then.`,
		Example: `  vippin fastpath ls
  vippin fastpath ls -j | jq .packets`,
		Args: cobra.NoArgs,
		RunE: c.verb(func(ctx context.Context, _ []string) error {
			state, err := c.fastpathState(ctx)
			if err != nil {
				return err
			}
			if c.json {
				return printJSON(c.env.stdout, fillFastpath(state))
			}
			return showFastpath(newOutput(c.env), state)
		}),
	})
}

const fastpathSwitchHelp = `

No connection breaks: packets take one way or the other. The switch outlives
restarts, and beats the configuration until "vippin fastpath reset". The daemon
must run: without it nobody would notice changes, and there is no fast path.`

func (c *cli) fastpathSwitch(action toggleAction, short, long string) *cobra.Command {
	return c.withJSON(&cobra.Command{
		Use: string(action), Short: short, Long: long + fastpathSwitchHelp,
		Example: "  vippin fastpath " + string(action),
		Args:    cobra.NoArgs,
		RunE: c.verb(func(ctx context.Context, _ []string) error {
			daemon, err := c.daemon()
			if err != nil {
				return err
			}
			state, err := daemon.SwitchFastpath(ctx, action)
			if err != nil {
				return err
			}
			if c.json {
				err = printJSON(c.env.stdout, fillFastpath(state))
			} else {
				err = showFastpathSwitched(newOutput(c.env), state)
			}
			if err == nil && action == toggleOn && !state.Open {
				return silentExit(exitFailed)
			}
			return err
		}),
	})
}

// fastpathState asks the daemon, else the pinned maps.
func (c *cli) fastpathState(ctx context.Context) (state policy.FastpathState, err error) {
	p, err := c.places()
	if err != nil {
		return state, err
	}
	state, err = newClient(c.env, p.runDir).Fastpath(ctx)
	if !errors.Is(err, errNoDaemon) {
		return state, err
	}
	d, err := c.openPinned(p)
	if err != nil {
		return state, err
	}
	defer d.Close()
	if state, err = pinnedFastpath(d); err != nil {
		return state, err
	}
	toggle, err := toggleStore{dir: p.stateDir}.LoadFastpath()
	if err != nil {
		state.Warnings = append(state.Warnings, err.Error())
	}
	state.Enabled, state.EnabledBy = policy.DecideFastpath(toggle, p.config != nil && p.config.Fastpath.Enabled)
	state.Open, state.Closed = false, "no daemon runs that would notice changes"
	return state, nil
}

// pinnedFastpath reads what a daemon has left.
func pinnedFastpath(d dataplane) (state policy.FastpathState, err error) {
	table, err := d.OpenFastpath()
	if errors.Is(err, loader.ErrNotLoaded) {
		return state, nil
	}
	if err != nil {
		return state, fmt.Errorf("look at the fast path: %w", err)
	}
	state, err = table.State()
	return state, errors.Join(err, table.Close())
}
