// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

var (
	pollInterval   = Slowly(3 * time.Millisecond)
	defaultTimeout = Slowly(10 * time.Second)
)

// Await asks again and again until holds says yes or fails. A context without
// a deadline gets one of 10 s (Slowly). The error names what was waited for.
func Await(ctx context.Context, what string, holds func() (bool, error)) error {
	if _, limited := ctx.Deadline(); !limited {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, defaultTimeout)
		defer cancel()
	}
	start := time.Now()
	for {
		asked := time.Now()
		ok, err := holds()
		if err != nil {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: not so after %s: %w", what, time.Since(start).Round(time.Millisecond), ctx.Err())
		case <-time.After(max(pollInterval, time.Since(asked))): // asking takes half of the processor at most
		}
	}
}

// AwaitAddress waits until the node holds an address, or no longer does.
func (n *Node) AwaitAddress(ctx context.Context, addr netip.Addr, there bool) error {
	what := fmt.Sprintf("%s on %s", addr, n.Name)
	if !there {
		what = fmt.Sprintf("%s off %s", addr, n.Name)
	}
	return Await(ctx, what, func() (bool, error) {
		held, err := n.Holds(addr)
		return held == there, err
	})
}

// VIPs lists the virtual addresses that make the router MASTER: all but the
// link-local ones, and without IPv6 if its keepalived leaves that out.
func (r *Router) VIPs() []netip.Addr {
	r.lab.mu.Lock()
	only4 := r.only4
	r.lab.mu.Unlock()
	var vips []netip.Addr
	for _, s := range r.lab.Segments() {
		vips = append(vips, s.VIP4)
		if !only4 {
			vips = append(vips, s.VIP6)
		}
	}
	return vips
}

// IsMaster says whether the router holds every VIP, and whether at least one.
func (r *Router) IsMaster() (every, some bool, err error) {
	every = true
	for _, vip := range r.VIPs() {
		held, err := r.Holds(vip)
		if err != nil {
			return false, false, err
		}
		every, some = every && held, some || held
	}
	return every, some, nil
}

// AwaitMaster waits until the router holds every VIP.
func (r *Router) AwaitMaster(ctx context.Context) error {
	holds := func() (bool, error) {
		every, _, err := r.IsMaster()
		return every, err
	}
	if p := r.Keepalived(); p != nil {
		return p.await(ctx, "every VIP on the router", holds)
	}
	return Await(ctx, "every VIP on "+r.Name, holds)
}

// AwaitBackup waits until the router holds no VIP.
func (r *Router) AwaitBackup(ctx context.Context) error {
	return Await(ctx, "no VIP on "+r.Name, func() (bool, error) {
		_, some, err := r.IsMaster()
		return !some, err
	})
}

// awaitLinks waits until every cable carries and every machine has its
// link-local addresses: keepalived's IPv6 instances need them at their start.
func (l *Lab) awaitLinks(ctx context.Context) error {
	for _, n := range l.nodes {
		if n == l.LANSwitch || n == l.WANSwitch {
			continue
		}
		if err := n.awaitLinks(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) awaitLinks(ctx context.Context) error {
	return Await(ctx, "the links of "+n.NS, func() (bool, error) {
		links, err := n.nl.LinkList()
		if err != nil {
			return false, err
		}
		byLink, err := n.Addresses()
		if err != nil {
			return false, err
		}
		for _, link := range links {
			if link.Type() != "veth" && link.Type() != "vlan" {
				continue
			}
			attrs := link.Attrs()
			if attrs.OperState != netlink.OperUp || !hasLinkLocal(byLink[attrs.Name]) {
				return false, nil
			}
		}
		return true, nil
	})
}

func hasLinkLocal(prefixes []netip.Prefix) bool {
	for _, p := range prefixes {
		if p.Addr().IsLinkLocalUnicast() && p.Addr().Is6() && p.Addr().As16()[11] == 0xff { // EUI-64, not a VIP
			return true
		}
	}
	return false
}

// Describe tells who holds which address and what the processes wrote last:
// for a test that failed.
func (l *Lab) Describe() string {
	var text strings.Builder
	for _, r := range l.Routers() {
		if r.nl == nil {
			fmt.Fprintf(&text, "%s is off\n", r.Name)
			continue
		}
		byLink, err := r.Addresses()
		fmt.Fprintf(&text, "%s: %v %v\n", r.Name, byLink, errors.Join(err))
		for _, p := range []*Proc{r.Keepalived(), r.VippinProc()} {
			if p != nil {
				fmt.Fprintf(&text, "--- %s on %s (running: %t), last lines:\n%s\n", p.Name, r.Name, p.Alive(), p.logTail())
			}
		}
	}
	return text.String()
}
