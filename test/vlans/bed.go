// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"vippin/test/lab"
)

// kind is what the VLANs of a bed are.
type kind string

const (
	cables kind = "veth"   // one for each, called eth0.TAG
	tagged kind = "802.1Q" // sub-interfaces of eth0
)

const (
	firstTag = 1001
	vlansMax = 250 // an octet of their addresses
)

// bed is a lab whose router has the VLANs besides LAN and WAN.
type bed struct {
	*lab.Lab
	kind  kind
	count int
}

func newBed(ctx context.Context, kind kind, count int) (*bed, error) {
	opts := lab.Options{Hosts: 1, SingleRouter: true}
	if kind == tagged {
		opts.Trunk, opts.TrunkNames = lab.TrunkTagged, true
	}
	l, err := lab.New(ctx, fmt.Sprintf("vlans%d", count), opts)
	if err != nil {
		return nil, err
	}
	b := &bed{Lab: l, kind: kind, count: count}
	if err := b.addVLANs(ctx); err != nil {
		return nil, fmt.Errorf("add the VLANs: %w: %w", err, l.Close())
	}
	return b, nil
}

// list is the VLANs as "vippin pin" takes them.
func (b *bed) list() string { return fmt.Sprintf("%d-%d", firstTag, firstTag+b.count-1) }

func address(i int, last byte) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 18, byte(i + 1), last})
}

func ifname(i int) string { return fmt.Sprintf("eth0.%d", firstTag+i) }

// addVLANs adds them to the router, with an address of its own and the VIP on each.
func (b *bed) addVLANs(ctx context.Context) error {
	var script strings.Builder
	for i := range b.count {
		name := ifname(i)
		if b.kind == tagged {
			fmt.Fprintf(&script, "link add link eth0 name %s type vlan id %d\n", name, firstTag+i)
		} else {
			fmt.Fprintf(&script, "link add %s type veth peer name v%d netns %s\nlink set %[1]s up\n", name, i, b.Server.NS)
		}
		fmt.Fprintf(&script, "link set %[1]s up\naddr add %[2]s/24 dev %[1]s\naddr add %[3]s/24 dev %[1]s\n", name, address(i, 3), address(i, 2))
	}
	if err := batch(ctx, b.RA.Node, b.Dir, script.String()); err != nil || b.kind == tagged {
		return err
	}
	script.Reset()
	for i := range b.count {
		fmt.Fprintf(&script, "link set v%d up\n", i)
	}
	return batch(ctx, b.Server, b.Dir, script.String())
}

// batch runs many ip commands.
func batch(ctx context.Context, at *lab.Node, dir, script string) error {
	file := filepath.Join(dir, "batch")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		return err
	}
	_, err := at.Run(ctx, "ip", "-batch", file)
	return err
}

// config is a pin for each VLAN, found by its tag or, without tags, by the name.
func (b *bed) config() string {
	var text strings.Builder
	text.WriteString("pins:\n")
	for i := range b.count {
		fmt.Fprintf(&text, "  - {vlan: %d, vips: [%s]", firstTag+i, address(i, 2))
		if b.kind == cables {
			fmt.Fprintf(&text, ", interface: %s", ifname(i))
		}
		text.WriteString("}\n")
	}
	return text.String()
}
