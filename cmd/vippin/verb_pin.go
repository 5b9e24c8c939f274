// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"vippin/policy"
)

const vlansHelp = `

VLANS is a list as network people write it: 2,20,101,239-240. Also 100.20
(QinQ), 0 (untagged), 2/voip (one of several pins on a VLAN) or an interface
name. When one of them has no pin, nothing is changed and the unknown ones are
listed.

Living connections keep the source address they have. The switch outlives
restarts, and beats the configuration until "vippin pin reset". It works without
a daemon too (after "vippin load").`

func (c *cli) pin() *cobra.Command {
	pin := &cobra.Command{
		Use: "pin", Short: "List the pins, switch them on and off", GroupID: "change",
		Long: `A pin is the rule of one VLAN: while this router is MASTER, new masqueraded
connections that leave there get the VIP as their source address.`,
		Example: `  vippin pin ls
  vippin pin on 2,20,101,201,239-240,250
  vippin pin off 2/voip`,
		Args: noVerb,
		RunE: needsVerb,
	}
	pin.AddCommand(
		c.pinList(),
		c.toggle(toggleOn, "Pin new connections on these VLANs",
			"Pin new connections on these VLANs to their VIP, whatever the configuration\nsays."),
		c.toggle(toggleOff, "Let new connections on these VLANs keep the router's own address",
			"Let new connections on these VLANs keep the router's own address, whatever the\nconfiguration says."),
		c.toggle(toggleReset, "Let the configuration decide again",
			"Forget what was toggled: the configuration decides again about these VLANs."),
	)
	return pin
}

func (c *cli) pinList() *cobra.Command {
	return c.withJSON(&cobra.Command{
		Use: "ls", Aliases: []string{"list", "show"}, Short: "List the pins",
		Long: `List the pins: whether they are on and who says so, this router's role, the
living pinned connections, the packets that left with the VIP and those that
did not and why:

    off            the pin is switched off
    backup         this router is not MASTER
    stale_role     it was MASTER, but nothing has confirmed it lately
    born_before    the connection is older than the pin
    no_vip         the pin has no VIP of this family
    bridge         netfilter sees the answers before vippin, on a bridge's port
    source         no pin takes this inside host
    helper         the connection has a conntrack helper (FTP, SIP …)
    full           the mapping table is full (dataplane.max_flows)
    no_port        no free port on the VIP was found
    no_conntrack   conntrack does not know the packet
    fragment       a later fragment whose first one was not seen
    protocol       not translated: UDP-Lite, DCCP, ICMP queries other than echo
    error          it could not be rewritten

It works without a daemon too (after "vippin load").`,
		Example: `  vippin pin ls
  vippin pin ls -j | jq -r '.[] | select(.enabled | not) | .vlan'`,
		Args: cobra.NoArgs,
		RunE: c.verb(func(ctx context.Context, _ []string) error {
			pins, err := c.pins(ctx)
			if err != nil {
				return err
			}
			if c.json {
				return printJSON(c.env.stdout, fillPins(pins))
			}
			return showPins(newOutput(c.env), pins)
		}),
	})
}

func (c *cli) toggle(action toggleAction, short, long string) *cobra.Command {
	return c.withJSON(&cobra.Command{
		Use: string(action) + " VLANS", Short: short, Long: long + vlansHelp,
		Example:           fmt.Sprintf("  vippin pin %[1]s 2\n  vippin pin %[1]s 2,20,101,201,239-240,250\n  vippin pin %[1]s eth0.2", action),
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: c.completeVLANs,
		RunE: c.verb(func(ctx context.Context, args []string) error {
			selectors, err := policy.ParseSelectors(args...)
			if err != nil {
				return usageError{err}
			}
			pins, err := c.switchPins(ctx, action, strings.Join(args, " "), selectors)
			if err != nil {
				return c.toldUnknown(err)
			}
			if c.json {
				return printJSON(c.env.stdout, fillStates(pins))
			}
			return showToggled(newOutput(c.env), pins)
		}),
	})
}

// toldUnknown lets -j scripts read which VLANs have no pin.
func (c *cli) toldUnknown(err error) error {
	var unknown *unknownPinsError
	if c.json && errors.As(err, &unknown) {
		return errors.Join(printJSON(c.env.stdout, failure{Error: unknown.Error(), Unknown: unknown.Unknown}), err)
	}
	return err
}

// completeVLANs offers the pins there are, after what is already in the list.
func (c *cli) completeVLANs(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	pins, err := c.pins(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	before := typed[:strings.LastIndexByte(typed, ',')+1]
	var words []string
	for _, p := range pins {
		if word := before + p.Key().String(); strings.HasPrefix(word, typed) {
			words = append(words, fmt.Sprintf("%s\t%s %s", word, p.Interface, joined(p.VIPs)))
		}
	}
	return words, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}
