// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"vippin/bpf"
	"vippin/loader/ethtool"
	"vippin/policy"
)

// The router's interfaces.
const (
	lanName = "lan0"
	wanName = "wan0"
)

// layout is what a router is built for.
type layout struct {
	family     string
	vlan       policy.VLAN // of the outside
	flows      int         // at most, new ones included
	part       int         // how many are learnt at a time, remote hosts as a whole, and then forgotten by conntrack; 0: all
	fresh      int         // new ones that are made at a time, to tell how many it takes; 0: none
	noChecksum bool
}

// bed is a router with a network of generator and sink on each side of it.
type bed struct {
	core
	network
	layout
	name policy.BenchCase
	way  way
	ctx  context.Context // ends what takes long

	home, router netns.NsHandle
	sides        [2]side // inside, outside
	programs     bpf.GeneratorObjects
	pin          *pinning  // nil without vippin
	fast         *fastpath // nil without
	undo         []func() error
	total        result // of the runs since it was set to zero
	turn         uint32 // whose it is among the flows
	strangers    int    // streams of new flows so far
}

// side is one of the router's interfaces and the network behind it.
type side struct {
	ns              netns.NsHandle
	near, far       int    // ifindex of the router's end, and of the other one
	name            string // of the interface with addresses: the router's end, or a VLAN on it
	index           int    // its ifindex
	nearMAC, farMAC net.HardwareAddr
}

const (
	insideSide = iota
	outsideSide
)

// newBed builds a router for a case. Close it.
func newBed(ctx context.Context, c core, name policy.BenchCase, l layout) (b *bed, err error) {
	b = &bed{
		ctx: ctx, core: c, network: networks[l.family], layout: l, name: name, way: ways[name],
		home: netns.None(), router: netns.None(),
	}
	for i := range b.sides {
		b.sides[i].ns = netns.None()
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if err := bpf.LoadGeneratorObjects(&b.programs, nil); err != nil {
		return b, fmt.Errorf("load generator and sink: %w", err)
	}
	b.undo = append(b.undo, b.programs.Close)
	for _, step := range []func() error{
		b.addNamespaces, b.addSides, b.addVLAN, b.addXDP, b.addForwarding, b.addRules, b.addEmpty, b.addPin, b.addFast, b.addEnds,
	} {
		if err := step(); err != nil {
			return b, err
		}
	}
	if err := netns.Set(b.home); err != nil {
		return b, fmt.Errorf("return to this network namespace: %w", err)
	}
	return b, nil
}

// close takes the router away, and leaves the thread where newBed found it.
func (b *bed) close() error {
	var errs []error
	if b.router.IsOpen() {
		errs = append(errs, netns.Set(b.router))
	}
	for i := len(b.undo) - 1; i >= 0; i-- {
		errs = append(errs, b.undo[i]())
	}
	b.undo = nil
	if b.home.IsOpen() {
		errs = append(errs, netns.Set(b.home))
	}
	for _, ns := range []*netns.NsHandle{&b.home, &b.router, &b.sides[insideSide].ns, &b.sides[outsideSide].ns} {
		if ns.IsOpen() {
			errs = append(errs, ns.Close())
		}
	}
	return errors.Join(errs...)
}

func (b *bed) addNamespaces() (err error) {
	if b.home, err = netns.Get(); err != nil {
		return fmt.Errorf("open this network namespace: %w", err)
	}
	for _, ns := range []*netns.NsHandle{&b.sides[insideSide].ns, &b.sides[outsideSide].ns, &b.router} {
		if *ns, err = netns.New(); err != nil { // and enters it
			return fmt.Errorf("make a network namespace: %w", err)
		}
		// No addresses but ours, and those at once.
		for _, file := range []string{"accept_dad", "autoconf", "router_solicitations"} {
			if err := writeSysctl("net/ipv6/conf/default/"+file, "0"); err != nil {
				return err
			}
		}
	}
	return nil
}

func writeSysctl(path, value string) error {
	if err := os.WriteFile("/proc/sys/"+path, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set sysctl %s to %s: %w", path, value, err)
	}
	return nil
}

// in calls do in a namespace and returns from there.
func in(ns netns.NsHandle, do func() error) error {
	from, err := netns.Get()
	if err != nil {
		return fmt.Errorf("open this network namespace: %w", err)
	}
	defer func() { _ = from.Close() }()
	if err := netns.Set(ns); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	err = do()
	if back := netns.Set(from); back != nil {
		return errors.Join(err, fmt.Errorf("return from network namespace: %w", back))
	}
	return err
}

func (b *bed) attachXDP(program *ebpf.Program, ifindex int, name string) error {
	l, err := link.AttachXDP(link.XDPOptions{Program: program, Interface: ifindex, Flags: link.XDPDriverMode})
	if err != nil {
		return fmt.Errorf("attach %v to %s: %w", program, name, err)
	}
	b.undo = append(b.undo, l.Close)
	return nil
}

// addXDP puts the case's own program on the router's interfaces. A veth takes
// frames only with an XDP program, which vippin brings along, or with GRO.
func (b *bed) addXDP() error {
	p := b.programs
	programs := map[xdpWay][2]*ebpf.Program{
		xdpDrop: {p.SinkOutside, p.SinkInside}, xdpRedirect: {p.RedirectOutside, p.RedirectInside}, xdpFib: {p.ForwardByFib, p.ForwardByFib},
	}
	for i := range b.sides {
		s := b.sides[i]
		name := []string{lanName, wanName}[i]
		if program := programs[b.way.xdp][i]; program != nil {
			if err := b.attachXDP(program, s.near, name); err != nil {
				return err
			}
		} else if err := ethtool.Switch(name, "rx-gro", true); err != nil {
			return err
		}
		if err := b.programs.Sides.Put(uint32(i), uint32(s.near)); err != nil {
			return fmt.Errorf("tell the redirect where to: %w", err)
		}
		if err := b.programs.ByRoute.Put(uint32(s.index), uint32(s.near)); err != nil {
			return fmt.Errorf("tell the redirect by routes where to: %w", err)
		}
		if err := awaitCarrier(s.near); err != nil {
			return err
		}
	}
	return nil
}

// addEmpty puts programs that do nothing where vippin's would be. All else is as
// vippin has it.
func (b *bed) addEmpty() error {
	if !b.way.empty {
		return nil
	}
	if err := reportEvents(); err != nil {
		return err
	}
	for _, hook := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
		l, err := link.AttachTCX(link.TCXOptions{Program: b.programs.Nothing, Interface: b.sides[outsideSide].index, Attach: hook})
		if err != nil {
			return fmt.Errorf("attach an empty program (it takes Linux 6.6; leave the case %s out): %w", policy.BenchEmpty, err)
		}
		b.undo = append(b.undo, l.Close)
	}
	return nil
}

// addEnds tells the sink which addresses are which, and what tags to look for.
func (b *bed) addEnds() error {
	ends := bpf.GeneratorBenchEnds{Tags: int32(b.way.tags(b.vlan).count)}
	ends.Unique.Word, ends.Vip.Word = words(b.unique.Addr()), words(b.vip)
	if err := b.programs.Ends.Set(ends); err != nil {
		return fmt.Errorf("tell the sink the router's addresses: %w", err)
	}
	return nil
}

// flush removes the flows of a crowded router before its namespace goes: the
// kernel would do so in the background, while the next one is measured.
func (b *bed) flush() error {
	if err := netlink.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		return fmt.Errorf("remove the flows: %w", err)
	}
	return nil
}
