// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
)

// SyncLink is the interface of the link between the routers that carries what
// they replicate, and no VRRP. AddSyncLink makes it.
const SyncLink = "sync0"

// The routers' addresses on the sync link, a /29.
var (
	SyncRA = netip.MustParseAddr("198.19.0.1")
	SyncRB = netip.MustParseAddr("198.19.0.2")
	SyncRC = netip.MustParseAddr("198.19.0.3")
)

const bridgeSync = "br2" // in the WAN switch's namespace

// AddSyncLink connects the routers by a switch of its own. After Crash it is
// PlugSync that brings the link back, before PowerOn.
func (l *Lab) AddSyncLink() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridgeSync
	if err := l.WANSwitch.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("add bridge %s in %s: %w", bridgeSync, l.WANSwitch.NS, err)
	}
	if err := l.WANSwitch.setUp(bridgeSync); err != nil {
		return err
	}
	for _, r := range l.Routers() {
		if err := errors.Join(
			r.plug(SyncLink, l.WANSwitch, bridgeSync, r.syncPort()),
			r.addAddress(SyncLink, r.SyncAddr(), 29, false),
		); err != nil {
			return err
		}
	}
	l.syncLink = true
	return nil
}

// SyncAddr is the router's address on the sync link.
func (r *Router) SyncAddr() netip.Addr {
	switch r {
	case r.lab.RA:
		return SyncRA
	case r.lab.RC:
		return SyncRC
	}
	return SyncRB
}

func (r *Router) syncPort() string { return r.Name + "s" }

// CutSync takes the router's cable of the sync link out of its switch; the
// interface stays up and loses the carrier. PlugSync puts it in again.
func (l *Lab) CutSync(r *Router) error { return l.WANSwitch.setLink(r.syncPort(), false) }

// PlugSync undoes CutSync.
func (l *Lab) PlugSync(r *Router) error { return l.WANSwitch.setLink(r.syncPort(), true) }

// LinksDown kills keepalived and sets the router's interfaces down from
// within: the kernel flushes the masqueraded flows. Whatever else runs on the
// router lives on, and so does the sync link.
func (l *Lab) LinksDown(r *Router) error {
	killed := make(chan error, 1)
	if p := r.Keepalived(); p != nil {
		go func() { killed <- p.Kill9() }()
		<-p.Done() // Kill9 goes on to see that its children have ended, too
	} else {
		killed <- nil
	}
	var errs []error
	for _, s := range l.Segments() {
		errs = append(errs, r.setLink(r.Ifname(s), false))
	}
	return errors.Join(append(errs, <-killed)...)
}

// Crash ends a router in one moment, as a kernel panic or a power failure does:
// what runs in it stands still, every cable is pulled at the switches, that of the
// sync link first, and then everything is killed. Nothing of it gets out: no resignation
// because one cable was out before another, no word over the sync link. The
// interfaces stay up.
func (l *Lab) Crash(r *Router) error {
	errs := []error{signalInside(r.NS, syscall.SIGSTOP)}
	if _, err := r.nl.LinkByName(SyncLink); err == nil {
		errs = append(errs, l.CutSync(r))
	}
	for _, s := range l.Segments() {
		errs = append(errs, l.CutCable(r, s))
	}
	return errors.Join(append(errs, killInside(r.NS))...)
}
