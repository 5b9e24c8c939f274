// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vippin/bpf"
	"vippin/policy"
)

const (
	ipv4 = "ipv4"
	ipv6 = "ipv6"
)

// network is the addresses of a family.
type network struct {
	lan, unique       netip.Prefix // the router's own
	vip               netip.Addr
	clients, remotes  netip.Addr // the first of many
	inside, outside   netip.Prefix
	insideHop, outHop netip.Addr // who has them
}

var networks = map[string]network{
	ipv4: {
		lan: netip.MustParsePrefix("192.168.101.1/24"), unique: netip.MustParsePrefix("198.51.100.3/24"),
		vip:     netip.MustParseAddr("198.51.100.2"),
		clients: netip.MustParseAddr("198.18.0.1"), inside: netip.MustParsePrefix("198.18.0.0/16"),
		remotes: netip.MustParseAddr("203.0.113.1"), outside: netip.MustParsePrefix("203.0.113.0/24"),
		insideHop: netip.MustParseAddr("192.168.101.10"), outHop: netip.MustParseAddr("198.51.100.10"),
	},
	ipv6: {
		lan: netip.MustParsePrefix("2001:db8:101::1/64"), unique: netip.MustParsePrefix("2001:db8:100::3/64"),
		vip:     netip.MustParseAddr("2001:db8:100::2"),
		clients: netip.MustParseAddr("2001:db8:18::1"), inside: netip.MustParsePrefix("2001:db8:18::/64"),
		remotes: netip.MustParseAddr("2001:db8:113::1"), outside: netip.MustParsePrefix("2001:db8:113::/64"),
		insideHop: netip.MustParseAddr("2001:db8:101::10"), outHop: netip.MustParseAddr("2001:db8:100::10"),
	},
}

// The router's interfaces.
const (
	lanName = "lan0"
	wanName = "wan0"
)

// bed is a router with a network of generator and sink on each side of it.
type bed struct {
	core
	network
	name       policy.BenchCase
	way        way
	family     string
	noChecksum bool

	home, router netns.NsHandle
	sides        [2]side // inside, outside
	programs     bpf.GeneratorObjects
	pin          *pinning // nil without vippin
	undo         []func() error
	total        result // of the runs since it was set to zero
}

// side is one of the router's interfaces and the network behind it.
type side struct {
	ns              netns.NsHandle
	near, far       int // ifindex of the router's end, and of the other one
	nearMAC, farMAC net.HardwareAddr
}

const (
	insideSide = iota
	outsideSide
)

// newBed builds a router for a case. Close it.
func newBed(c core, name policy.BenchCase, family string, noChecksum bool) (b *bed, err error) {
	b = &bed{
		core: c, network: networks[family], name: name, way: ways[name], family: family, noChecksum: noChecksum,
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
	for _, step := range []func() error{b.addNamespaces, b.addSides, b.addForwarding, b.addRules, b.addEmpty, b.addPin, b.addEnds} {
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

// addSides lays the cables. The thread is in the router's namespace.
func (b *bed) addSides() error {
	for i, name := range []string{lanName, wanName} {
		s := &b.sides[i]
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name, PeerNamespace: netlink.NsFd(s.ns)})
		if err != nil {
			return fmt.Errorf("add %s: %w", name, err)
		}
		if s.near, s.nearMAC, err = setUp(name); err != nil {
			return err
		}
		sink := []*ebpf.Program{b.programs.SinkInside, b.programs.SinkOutside}[i]
		err = in(s.ns, func() (err error) {
			if s.far, s.farMAC, err = setUp(name); err != nil {
				return err
			}
			return b.attachXDP(sink, s.far, name)
		})
		if err != nil {
			return err
		}
		if b.way.redirect {
			err = b.attachXDP(b.programs.Redirect, s.near, name)
		} else {
			// A veth takes frames only with an XDP program or with GRO.
			err = enableGRO(name)
		}
		if err != nil {
			return err
		}
	}
	for i := range b.sides {
		key, value := uint32(b.sides[i].near), uint32(b.sides[1-i].near)
		if err := b.programs.OtherSide.Put(key, value); err != nil {
			return fmt.Errorf("tell the redirect where to: %w", err)
		}
		if err := awaitCarrier(b.sides[i].near); err != nil {
			return err
		}
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

func setUp(name string) (int, net.HardwareAddr, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return 0, nil, fmt.Errorf("find %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return 0, nil, fmt.Errorf("set %s up: %w", name, err)
	}
	return l.Attrs().Index, l.Attrs().HardwareAddr, nil
}

// awaitCarrier waits until the kernel has noticed that both ends of a cable are
// up: until then it drops what is sent there.
func awaitCarrier(ifindex int) error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		l, err := netlink.LinkByIndex(ifindex)
		if err != nil {
			return fmt.Errorf("look at interface %d: %w", ifindex, err)
		}
		if l.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("wait for %s to come up: it is %s", l.Attrs().Name, l.Attrs().OperState)
		}
	}
}

func (b *bed) attachXDP(program *ebpf.Program, ifindex int, name string) error {
	l, err := link.AttachXDP(link.XDPOptions{Program: program, Interface: ifindex, Flags: link.XDPDriverMode})
	if err != nil {
		return fmt.Errorf("attach %v to %s: %w", program, name, err)
	}
	b.undo = append(b.undo, l.Close)
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
		l, err := link.AttachTCX(link.TCXOptions{Program: b.programs.Nothing, Interface: b.sides[outsideSide].near, Attach: hook})
		if err != nil {
			return fmt.Errorf("attach an empty program (it takes Linux 6.6; leave the case %s out): %w", policy.BenchEmpty, err)
		}
		b.undo = append(b.undo, l.Close)
	}
	return nil
}

// addForwarding makes a router: addresses, routes, and neighbours that nobody
// need be asked for.
func (b *bed) addForwarding() error {
	for _, file := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if err := writeSysctl(file, "1"); err != nil {
			return err
		}
	}
	for _, s := range []struct {
		own  netip.Prefix
		far  netip.Prefix
		hop  netip.Addr
		side side
	}{
		{b.lan, b.inside, b.insideHop, b.sides[insideSide]},
		{b.unique, b.outside, b.outHop, b.sides[outsideSide]},
	} {
		if err := addAddr(s.side.near, s.own, false); err != nil {
			return err
		}
		neighbour := netlink.Neigh{
			LinkIndex: s.side.near, State: netlink.NUD_PERMANENT, IP: s.hop.AsSlice(), HardwareAddr: s.side.farMAC,
		}
		if err := netlink.NeighAdd(&neighbour); err != nil {
			return fmt.Errorf("add neighbour %s: %w", s.hop, err)
		}
		route := netlink.Route{LinkIndex: s.side.near, Gw: s.hop.AsSlice(), Dst: ipNet(s.far)}
		if err := netlink.RouteAdd(&route); err != nil {
			return fmt.Errorf("add route to %s: %w", s.far, err)
		}
	}
	return addAddr(b.sides[outsideSide].near, netip.PrefixFrom(b.vip, b.vip.BitLen()), true)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// addAddr adds an address, a VIP as keepalived does: over IPv6 deprecated, so
// that nothing chooses it by itself.
func addAddr(ifindex int, prefix netip.Prefix, virtual bool) error {
	addr := &netlink.Addr{IPNet: ipNet(prefix)}
	if prefix.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
		if virtual {
			addr.ValidLft = math.MaxUint32
		}
	}
	l := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: ifindex}}
	if err := netlink.AddrAdd(l, addr); err != nil {
		return fmt.Errorf("add address %s: %w", prefix, err)
	}
	return nil
}

// addEnds tells the sink which addresses are which.
func (b *bed) addEnds() error {
	var ends bpf.GeneratorBenchEnds
	ends.Unique.Word, ends.Vip.Word = words(b.unique.Addr()), words(b.vip)
	if err := b.programs.Ends.Set(ends); err != nil {
		return fmt.Errorf("tell the sink the router's addresses: %w", err)
	}
	return nil
}
