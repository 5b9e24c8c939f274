// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
)

// Reboot switches a router off and on again. All cables are dead at once, then
// everything in the router ends: processes, conntrack, rules, sysctls, addresses, what
// is pinned in bpffs and what a boot empties (/run). It comes back as after a boot,
// with the same MAC addresses, and its state_dir as it was; keepalived and vippin
// are started by the caller.
func (l *Lab) Reboot(ctx context.Context, r *Router) error {
	if err := l.PowerOff(r); err != nil {
		return err
	}
	return l.Boot(ctx, r)
}

// PowerOff is the first half of Reboot: the router is gone.
func (l *Lab) PowerOff(r *Router) error {
	if l.Options.Offloads != OffloadsDefault {
		return errors.New("switch a router off: its offloads would not come back")
	}
	return l.buildStep(func() error {
		var errs []error
		r.macs = make(map[string]net.HardwareAddr)
		for _, c := range l.cables(r) {
			link, err := r.nl.LinkByName(c.ifname)
			if err != nil {
				return fmt.Errorf("find %s in %s: %w", c.ifname, r.NS, err)
			}
			r.macs[c.ifname] = link.Attrs().HardwareAddr
			errs = append(errs, c.at.unplug(c.port)) // both ends are gone when this returns
		}
		errs = append(errs, killInside(r.NS), removePins(r.BPFFS), os.RemoveAll(r.RunDir()), r.remove())
		return errors.Join(errs...)
	})
}

// Boot is the second half.
func (l *Lab) Boot(ctx context.Context, r *Router) error {
	err := l.buildStep(func() error {
		if err := r.make(); err != nil {
			return err
		}
		if err := r.forwards(); err != nil {
			return err
		}
		if err := r.plugIn(); err != nil {
			return err
		}
		return errors.Join(r.takeXDP(ctx), r.configure(), r.addRules(ctx))
	})
	if err != nil {
		return fmt.Errorf("boot %s: %w", r.NS, err)
	}
	return r.awaitLinks(ctx)
}

// cable is one of a router's.
type cable struct {
	ifname string
	at     *Node // switch
	port   string
	lay    func() error
}

// cables lists a router's, that of the sync link too, if there is one.
func (l *Lab) cables(r *Router) (cables []cable) {
	add := func(ifname string, at *Node, bridge, port string) {
		cables = append(cables, cable{ifname, at, port, func() error { return r.plug(ifname, at, bridge, port) }})
	}
	if r.trunk() != TrunkNone {
		cables = append(cables, cable{r.trunkDevice(), l.WANSwitch, r.TrunkPort(), r.plugTrunk})
	} else {
		for _, s := range l.Segments() {
			at, bridge, port := l.port(r, s)
			add(s.Name, at, bridge, port)
		}
	}
	if l.syncLink {
		add(SyncLink, l.WANSwitch, bridgeSync, r.syncPort())
	}
	return cables
}

// unplug takes a cable away that plug laid.
func (n *Node) unplug(port string) error {
	link, err := n.nl.LinkByName(port)
	if err != nil {
		return fmt.Errorf("find %s in %s: %w", port, n.NS, err)
	}
	if err := n.nl.LinkDel(link); err != nil {
		return fmt.Errorf("remove %s in %s: %w", port, n.NS, err)
	}
	return nil
}
