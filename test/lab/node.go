// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"vippin/test/traffic"
)

const netnsRoot = "/run/netns"

// Node is one namespace: a host, a router or a switch.
type Node struct {
	Name string // h1, ra, srv, lan, wan …
	NS   string // name below /run/netns

	lab    *Lab
	handle netns.NsHandle
	nl     *netlink.Handle
	macs   map[string]net.HardwareAddr // of interfaces that plug makes, by name; others get any
}

// addNode makes a namespace in which IPv6 addresses are usable at once.
func (l *Lab) addNode(name string) (*Node, error) {
	n := &Node{Name: name, NS: prefix() + l.Name + "-" + name, lab: l, handle: netns.None()}
	l.mu.Lock()
	l.nodes = append(l.nodes, n)
	l.mu.Unlock()
	return n, n.make()
}

// make makes the node's namespace.
func (n *Node) make() error {
	origin, err := netns.Get()
	if err != nil {
		return fmt.Errorf("open this thread's network namespace: %w", err)
	}
	defer origin.Close()
	// NewNamed leaves its thread in the new namespace; Inside takes it back.
	err = traffic.Inside(origin)(func() (err error) {
		n.handle, err = netns.NewNamed(n.NS)
		return err
	})
	if err != nil {
		return fmt.Errorf("make namespace %s: %w", n.NS, err)
	}
	if n.nl, err = netlink.NewHandleAt(n.handle); err != nil {
		return fmt.Errorf("open netlink in %s: %w", n.NS, err)
	}
	settings := map[string]string{
		"net/ipv6/conf/all/accept_dad":     "0",
		"net/ipv6/conf/default/accept_dad": "0",
		"net/ipv4/conf/all/rp_filter":      "0",
		"net/ipv4/conf/default/rp_filter":  "0",
	}
	for key, value := range settings {
		if err := n.Sysctl(key, value); err != nil {
			return err
		}
	}
	return n.setUp("lo")
}

// remove removes the namespace, if there is one.
func (n *Node) remove() error {
	if n.nl != nil {
		n.nl.Close()
		n.nl = nil
	}
	if !n.handle.IsOpen() {
		return nil
	}
	return errors.Join(n.handle.Close(), netns.DeleteNamed(n.NS))
}

// Do calls f on a thread inside the node; it is a traffic.Enter. Goroutines
// that f starts are not inside, sockets that it opens stay inside.
func (n *Node) Do(f func() error) error { return traffic.Inside(n.handle)(f) }

// Netlink is a handle inside the node; it lives until the lab is closed.
func (n *Node) Netlink() *netlink.Handle { return n.nl }

// Sysctl writes a setting of the node below /proc/sys, such as
// "net/ipv4/ip_forward".
func (n *Node) Sysctl(key, value string) error {
	return n.Do(func() error {
		if err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0o644); err != nil {
			return fmt.Errorf("set %s=%s in %s: %w", key, value, n.NS, err)
		}
		return nil
	})
}

// Run runs a command inside the node and returns what it wrote to stdout. Its
// /sys stays the machine's, so that bpffs is seen.
func (n *Node) Run(ctx context.Context, name string, args ...string) (string, error) {
	return n.runWithInput(ctx, "", name, args...)
}

func (n *Node) runWithInput(ctx context.Context, input, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &stdout, &stderr
	if err := n.Do(cmd.Start); err != nil {
		return "", fmt.Errorf("start %s in %s: %w", name, n.NS, err)
	}
	if err := cmd.Wait(); err != nil {
		return stdout.String(), fmt.Errorf("run %s %s in %s: %w: %s", name, strings.Join(args, " "), n.NS, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// NFT loads an nftables script inside the node.
func (n *Node) NFT(ctx context.Context, script string) error {
	_, err := n.runWithInput(ctx, script, "nft", "-f", "-")
	return err
}

// Addresses lists the node's addresses by interface name, with prefix lengths.
func (n *Node) Addresses() (map[string][]netip.Prefix, error) {
	links, err := n.nl.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links of %s: %w", n.NS, err)
	}
	names := make(map[int]string)
	for _, link := range links {
		names[link.Attrs().Index] = link.Attrs().Name
	}
	addrs, err := n.addrList()
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", n.NS, err)
	}
	byLink := make(map[string][]netip.Prefix)
	for _, a := range addrs {
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			bits, _ := a.Mask.Size()
			name := names[a.LinkIndex]
			byLink[name] = append(byLink[name], netip.PrefixFrom(addr.Unmap(), bits))
		}
	}
	return byLink, nil
}

// Holds says whether the node has an address, on whatever interface (a VIP may
// be on a macvlan).
func (n *Node) Holds(addr netip.Addr) (bool, error) {
	addrs, err := n.addrList()
	if err != nil {
		return false, fmt.Errorf("list addresses of %s: %w", n.NS, err)
	}
	for _, a := range addrs {
		if have, ok := netip.AddrFromSlice(a.IP); ok && have.Unmap() == addr {
			return true, nil
		}
	}
	return false, nil
}

// addrList lists the node's addresses; a dump that they changed under is not of one
// moment, and is repeated.
func (n *Node) addrList() (addrs []netlink.Addr, err error) {
	for range 5 {
		if addrs, err = n.nl.AddrList(nil, netlink.FAMILY_ALL); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return addrs, err
}
