// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// rulesTimeout is generous: nft may have to wait for its netlink lock.
var rulesTimeout = Slowly(20 * time.Second)

// addRules loads the routers' NAT and firewall rules.
func (l *Lab) addRules() error {
	ctx, cancel := context.WithTimeout(context.Background(), rulesTimeout)
	defer cancel()
	var errs []error
	for _, r := range l.Routers() {
		errs = append(errs, r.addRules(ctx))
	}
	return errors.Join(errs...)
}

func (r *Router) addRules(ctx context.Context) error {
	if err := r.masquerade(ctx, r.lab.Options.Masquerade); err != nil || !r.lab.Options.Firewall {
		return err
	}
	return r.firewall(ctx)
}

func (r *Router) masquerade(ctx context.Context, how Masquerade) error {
	to4, to6 := "masquerade", "masquerade"
	switch how {
	case MasqueradeNone:
		return nil
	case MasqueradeIPTables:
		for tool, inside := range map[string]string{
			"iptables-nft": LAN.Prefix4().String(), "ip6tables-nft": LAN.Prefix6().String(),
		} {
			if _, err := r.Run(ctx, tool, "-w", "-t", "nat", "-A", "POSTROUTING", "-s", inside, "!", "-o", r.Ifname(LAN), "-j", "MASQUERADE"); err != nil {
				return err
			}
		}
		return nil
	case MasqueradeRandom:
		to4, to6 = "masquerade random", "masquerade random"
	case MasqueradeSNAT: // of the first segment: no lab with WAN1 needs it
		to4, to6 = fmt.Sprintf("snat ip to %s", WAN.VIP4), fmt.Sprintf("snat ip6 to %s", WAN.VIP6)
	}
	return r.NFT(ctx, fmt.Sprintf(`
table inet nat {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		oifname %[1]s ip saddr %[2]s %[3]s
		oifname %[1]s ip6 saddr %[4]s %[5]s
	}
}
`, r.outside(), LAN.Prefix4(), to4, LAN.Prefix6(), to6))
}

// firewall lets only established flows, ICMPv6's neighbour discovery and VRRP
// in from the WAN. Flows whose start conntrack did not see are not established.
func (r *Router) firewall(ctx context.Context) error {
	if err := r.Sysctl("net/netfilter/nf_conntrack_tcp_loose", "0"); err != nil {
		return err
	}
	return r.NFT(ctx, fmt.Sprintf(`
table inet firewall {
	chain input {
		type filter hook input priority filter; policy accept;
		iifname != %[1]s accept
		meta l4proto { 51, 112 } accept
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } accept
		ct state established,related accept
		drop
	}
	chain forward {
		type filter hook forward priority filter; policy accept;
		ct state invalid drop
		iifname != %[1]s accept
		ct state established,related accept
		drop
	}
}
`, r.outside()))
}

// setOffloads switches the offloads of every cable's both ends.
func (l *Lab) setOffloads() error {
	if l.Options.Offloads == OffloadsDefault {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), rulesTimeout)
	defer cancel()
	to := string(l.Options.Offloads)
	for _, n := range l.nodes {
		links, err := n.nl.LinkList()
		if err != nil {
			return fmt.Errorf("list links of %s: %w", n.NS, err)
		}
		for _, link := range links {
			if link.Type() != "veth" {
				continue
			}
			name := link.Attrs().Name
			if _, err := n.Run(ctx, "ethtool", "-K", name, "gro", to, "gso", to, "tso", to, "tx", to); err != nil {
				return err
			}
		}
	}
	return nil
}
