// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// block is one direction in which a switch passes no adverts.
type block struct {
	at       *Node
	from, to string // ports
}

// BlockAdverts makes the switches lose the VRRP adverts (protocols 112 and 51,
// both families) that one router sends to the other, on the given segments or,
// without any, on all. Everything else passes. It is done in the bridge's
// forward hook of nftables, which this and every other kernel from 5.3 has.
func (l *Lab) BlockAdverts(ctx context.Context, from, to *Router, segments ...Segment) error {
	if len(segments) == 0 {
		segments = l.Segments()
	}
	l.mu.Lock()
	for _, s := range segments {
		at, _, port := l.port(from, s)
		_, _, peer := l.port(to, s)
		if b := (block{at, port, peer}); !slices.Contains(l.blocks, b) {
			l.blocks = append(l.blocks, b)
		}
	}
	l.mu.Unlock()
	return l.loadBlocks(ctx)
}

// UnblockAdverts lets every advert pass again.
func (l *Lab) UnblockAdverts(ctx context.Context) error {
	l.mu.Lock()
	l.blocks = nil
	l.mu.Unlock()
	return l.loadBlocks(ctx)
}

func (l *Lab) loadBlocks(ctx context.Context) error {
	l.mu.Lock()
	blocks := slices.Clone(l.blocks)
	l.mu.Unlock()
	var errs []error
	for _, at := range []*Node{l.LANSwitch, l.WANSwitch} {
		var rules strings.Builder
		for _, b := range blocks {
			if b.at == at {
				fmt.Fprintf(&rules, "iifname %q oifname %q meta l4proto { 51, 112 } counter drop\n", b.from, b.to)
			}
		}
		errs = append(errs, at.NFT(ctx, fmt.Sprintf(`
table bridge adverts
delete table bridge adverts
table bridge adverts {
	chain forward {
		type filter hook forward priority filter; policy accept;
		%s
	}
}
`, rules.String())))
	}
	return errors.Join(errs...)
}

// CutCable takes a router's cable out of the switch: its interface loses the
// carrier, but stays up. On a trunk those of the other segments do, too.
func (l *Lab) CutCable(r *Router, s Segment) error { return l.setCable(r, s, false) }

// PlugCable puts it in again.
func (l *Lab) PlugCable(r *Router, s Segment) error { return l.setCable(r, s, true) }

func (l *Lab) setCable(r *Router, s Segment, up bool) error {
	at, _, port := l.port(r, s)
	if r.trunk() != TrunkNone {
		at, port = l.WANSwitch, r.TrunkPort()
	}
	return at.setLink(port, up)
}

// HardKill is a power failure: all cables are dead at once, so that nothing of
// what the end of the processes does gets out; keepalived and vippin are
// killed; then the router's interfaces go down.
func (l *Lab) HardKill(r *Router) error {
	var errs []error
	for _, s := range l.Segments() {
		errs = append(errs, l.CutCable(r, s))
	}
	errs = append(errs, killInside(r.NS))
	for _, s := range l.Segments() {
		errs = append(errs, r.setLink(r.Ifname(s), false))
	}
	return errors.Join(errs...)
}

// PowerOn brings a router back after HardKill as a reboot would: an empty
// conntrack table, no vippin state in bpffs, its own addresses and routes.
// keepalived and vippin are started by the caller.
func (l *Lab) PowerOn(ctx context.Context, r *Router) error {
	if err := removePins(r.BPFFS); err != nil {
		return err
	}
	if err := r.nl.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		return fmt.Errorf("empty the conntrack table of %s: %w", r.Name, err)
	}
	if err := l.dropVIPs(r); err != nil {
		return err
	}
	for _, s := range l.Segments() {
		if err := l.PlugCable(r, s); err != nil {
			return err
		}
	}
	if err := r.linksUp(); err != nil {
		return err
	}
	if err := r.configure(); err != nil {
		return err
	}
	return r.awaitLinks(ctx)
}

// dropVIPs removes what a killed keepalived left behind: VIPs and macvlans.
func (l *Lab) dropVIPs(r *Router) error {
	links, err := r.nl.LinkList()
	if err != nil {
		return fmt.Errorf("list links of %s: %w", r.NS, err)
	}
	for _, link := range links {
		if link.Type() == "macvlan" {
			if err := r.nl.LinkDel(link); err != nil {
				return fmt.Errorf("remove %s in %s: %w", link.Attrs().Name, r.NS, err)
			}
			continue
		}
		addrs, err := r.nl.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("list addresses of %s: %w", r.NS, err)
		}
		for _, a := range addrs {
			if l.isVIP(a.IP.String()) {
				if err := r.nl.AddrDel(link, &a); err != nil {
					return fmt.Errorf("remove %s in %s: %w", a.IP, r.NS, err)
				}
			}
		}
	}
	return nil
}

func (l *Lab) isVIP(addr string) bool {
	for _, s := range l.Segments() {
		if addr == s.VIP4.String() || addr == s.VIP6.String() || addr == s.VIPLL.String() {
			return true
		}
	}
	return false
}
