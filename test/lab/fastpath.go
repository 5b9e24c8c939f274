// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"strings"
)

// A veth stands for a NIC only as far as XDP goes on it. A frame that a program
// sends on is handed to the other end's NAPI, which is there when GRO is on (or a
// program is attached): else it is dropped. And a checksum that was left to the
// hardware is never written: the program redirects what is in memory. Packets that
// GRO has put together have such a one, too.

// fastpathSection is what WriteVippin adds to a configuration without one.
func (r *Router) fastpathSection() string {
	return fmt.Sprintf("fastpath: {enabled: true, interfaces: [%s]}\n", strings.Join(r.Devices(), ", "))
}

// setFastpath readies every cable for routers that forward by XDP.
func (l *Lab) setFastpath() error {
	if !l.Options.Fastpath {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), rulesTimeout)
	defer cancel()
	for _, n := range l.nodes {
		if n == l.LANSwitch || n == l.WANSwitch || l.isRouter(n) {
			continue
		}
		links, err := n.nl.LinkList()
		if err != nil {
			return fmt.Errorf("list links of %s: %w", n.NS, err)
		}
		for _, link := range links {
			if link.Type() != "veth" {
				continue
			}
			if _, err := n.Run(ctx, "ethtool", "-K", link.Attrs().Name, "tx", "off"); err != nil {
				return err
			}
		}
	}
	for _, r := range l.Routers() {
		if err := r.takeXDP(ctx); err != nil {
			return err
		}
	}
	return nil
}

// takeXDP readies the router's cables, if the lab has a fast path.
func (r *Router) takeXDP(ctx context.Context) error {
	if !r.lab.Options.Fastpath {
		return nil
	}
	for _, c := range r.lab.cables(r) {
		if err := r.lab.TakeXDP(ctx, c.at, c.port); err != nil {
			return err
		}
	}
	return r.keepTags(ctx)
}

func (l *Lab) isRouter(n *Node) bool {
	for _, r := range l.Routers() {
		if n == r.Node {
			return true
		}
	}
	return false
}

// TakeXDP has a port of a switch take the frames that a program of the router at
// the other end sends, and send it frames with checksums. Ports that the lab made do
// so already, with Options.Fastpath; without it nothing is done.
func (l *Lab) TakeXDP(ctx context.Context, at *Node, port string) error {
	if !l.Options.Fastpath {
		return nil
	}
	_, err := at.Run(ctx, "ethtool", "-K", port, "gro", "on", "tx", "off")
	return err
}
