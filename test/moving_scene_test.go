// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vippin/bpf"
	"vippin/loader"
	"vippin/loader/conntrack"
	"vippin/policy"
	"vippin/test/lab"
)

// wanMAC stays when the WAN interface is made anew, as that of a VLAN device
// does: neighbours go on sending to it.
const wanMAC = "02:00:00:00:64:03"

// moving is a scene in which the WAN interface of ra moves about.
type moving struct {
	*scene
	daemon *lab.Proc
	plane  *loader.Dataplane
	took   []time.Duration // from a change to when the maps had followed it
}

// setMoving builds a lab and sees to it that ra's WAN interface has wanMAC.
func setMoving(t *testing.T, name string, opts lab.Options) *moving {
	t.Helper()
	m := &moving{scene: setScene(t, name, opts)}
	m.ip(m.RA.Node, "link set wan0 address "+wanMAC)
	return m
}

// begin starts vippin on ra.
func (m *moving) begin(config string) {
	m.t.Helper()
	m.daemon = m.start(m.RA, config)
	plane, err := loader.Open(m.RA.BPFFS)
	m.must(err)
	m.plane = plane
	m.t.Cleanup(func() { _ = plane.Close() })
}

// run is t.Run in the same scene.
func (m *moving) run(name string, f func(m *moving)) {
	m.t.Helper()
	m.scene.run(name, func(s *scene) {
		inner := *m
		inner.scene = s
		f(&inner)
		m.took = inner.took
	})
}

// ip runs commands of ip(8) in a node, as fast as they go.
func (s *scene) ip(n *lab.Node, commands ...string) {
	s.t.Helper()
	_, err := n.Run(s.ctx, "sh", "-c", "ip -batch - <<'END'\n"+strings.Join(commands, "\n")+"\nEND\n")
	s.must(err)
}

// cable makes an interface of ra's on the WAN, as the kernel numbers it or with
// a number of the caller's choice. The switch's port is named after it.
func (s *scene) cable(name, mac string, number int) {
	s.t.Helper()
	index := ""
	if number != 0 {
		index = fmt.Sprintf("index %d", number)
	}
	s.ip(s.RA.Node, fmt.Sprintf("link add %s %s address %s type veth peer name p-%s netns %s", name, index, mac, name, s.WANSwitch.NS))
	s.ip(s.WANSwitch, fmt.Sprintf("link set p-%s master br0 up", name))
	s.must(s.TakeXDP(s.ctx, s.WANSwitch, "p-"+name))
	s.ip(s.RA.Node, "link set "+name+" up")
	if got := s.number(name); number != 0 && got != number {
		s.t.Fatalf("%s has number %d, want %d", name, got, number)
	}
}

// The addresses that ra has on the WAN, as the lab gives them, and its routes.
func addresses(ifname string, own lab.Ends) []string {
	return []string{
		fmt.Sprintf("addr add %s/24 dev %s", own.V4, ifname),
		fmt.Sprintf("addr add %s/64 dev %s nodad", own.V6, ifname),
	}
}

func vipAddresses(ifname string) []string {
	return []string{
		fmt.Sprintf("addr add %s/24 dev %s", vip.V4, ifname),
		fmt.Sprintf("addr add %s/128 dev %s nodad preferred_lft 0", vip.V6, ifname),
	}
}

func routes(ifname string) []string {
	return []string{
		fmt.Sprintf("route replace default via %s dev %s", lab.ServerWAN.V4, ifname),
		fmt.Sprintf("route replace default via %s dev %s", lab.ServerWAN.V6, ifname),
	}
}

// configure gives ra's WAN interface what it had, after it was made anew, and
// waits for the link-local address that the kernel gives it.
func (s *scene) configure(ifname string) {
	s.t.Helper()
	s.ip(s.RA.Node, slices.Concat(addresses(ifname, own), vipAddresses(ifname), routes(ifname))...)
	s.must(s.await("a link-local address on "+ifname, func() (bool, error) {
		byLink, err := s.RA.Addresses()
		return slices.ContainsFunc(byLink[ifname], func(p netip.Prefix) bool { return p.Addr().IsLinkLocalUnicast() }), err
	}))
}

// number is the index of an interface of ra, 0 if there is none of that name.
func (s *scene) number(ifname string) int {
	s.t.Helper()
	l, err := s.RA.Netlink().LinkByName(ifname)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return 0
	}
	s.must(err)
	return l.Attrs().Index
}

// blindly makes changes that the daemon sees only when all of them are made, as
// on a machine that is busy.
func (m *moving) blindly(changes func()) {
	m.t.Helper()
	m.must(m.daemon.Signal(syscall.SIGSTOP))
	changes()
	m.must(m.daemon.Signal(syscall.SIGCONT))
}

// follow waits until the maps and the attachments have followed the interfaces,
// with a pin on the interface ifname, and notes how long that took.
func (m *moving) follow(ifname string, vips ...netip.Addr) {
	m.t.Helper()
	if len(vips) == 0 {
		vips = []netip.Addr{vip.V4, vip.V6}
	}
	start, differs := time.Now(), ""
	ctx, cancel := context.WithTimeout(m.ctx, patience)
	defer cancel()
	err := lab.Await(ctx, "the maps to follow the interfaces", func() (bool, error) {
		var err error
		differs, err = m.outOfStep(ifname, vips)
		return differs == "", err
	})
	if err != nil {
		m.t.Fatalf("%v: %s\n%s", err, differs, m.Describe())
	}
	m.took = append(m.took, time.Since(start))
}

// outOfStep compares what the maps of ra say, and where the programs are, with
// the kernel's interfaces and addresses, and tells the first difference.
func (m *moving) outOfStep(ifname string, vips []netip.Addr) (differs string, err error) {
	err = m.RA.Do(func() error {
		plan, err := m.plane.Planned()
		if err != nil {
			return err
		}
		differs, err = m.compare(plan, ifname, vips)
		if differs == "" && err == nil {
			differs, err = m.compareUniques(m.number(ifname) != 0)
		}
		return err
	})
	return differs, err
}

func (m *moving) compare(plan policy.Plan, ifname string, vips []netip.Addr) (string, error) {
	number := m.number(ifname)
	addrs, err := m.RA.Addresses()
	if err != nil {
		return "", err
	}
	virtual := append([]netip.Addr{vip.V4, vip.V6, lab.WAN.VIPLL}, vips...) // with and without a pin
	var uniques []netip.Addr
	for _, prefix := range addrs[ifname] {
		if addr := prefix.Addr(); !slices.Contains(virtual, addr) {
			uniques = append(uniques, addr)
		}
	}
	for _, pin := range plan.Pins {
		if pin.Ifindex != number && !pin.Retired {
			return fmt.Sprintf("pin %s is on interface %d, %s has number %d", pin.Key(), pin.Ifindex, ifname, number), nil
		}
	}
	found := 0
	for _, face := range plan.Interfaces {
		switch {
		case face.Slot == 0:
		case face.Index != number:
			return fmt.Sprintf("interface %d is in the maps, %s has number %d", face.Index, ifname, number), nil
		case !sameAddrs(slices.DeleteFunc(face.Uniques, isVIPLL), uniques):
			return fmt.Sprintf("the maps hold the unique addresses %v, the kernel %v", face.Uniques, uniques), nil
		case !sameAddrs(face.VIPs, vips):
			return fmt.Sprintf("the maps hold the virtual addresses %v, the pin %v", face.VIPs, vips), nil
		default:
			found++
		}
	}
	if number != 0 && found != 1 {
		return fmt.Sprintf("%d interfaces are in the maps, want %s", found, ifname), nil
	}
	return m.comparePrograms(number)
}

// isVIPLL tells of the link-local VIP, which is in no pin: keepalived's looks like
// an address of the router's own, the lab's is deprecated and counts for nothing.
func isVIPLL(addr netip.Addr) bool { return addr == lab.WAN.VIPLL }

func sameAddrs(a, b []netip.Addr) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.SortFunc(a, netip.Addr.Compare)
	slices.SortFunc(b, netip.Addr.Compare)
	return slices.Equal(a, b)
}

// compareUniques looks whether every unique address is ready to be pinned.
func (m *moving) compareUniques(want bool) (string, error) {
	uniques, err := ebpf.LoadPinnedMap(filepath.Join(m.RA.BPFFS, bpf.DataplaneMapUniques), nil)
	if err != nil {
		return "", err
	}
	defer uniques.Close()
	var key bpf.DataplaneSlotAddr
	var state bpf.DataplaneUniqueState
	number := 0
	for all := uniques.Iterate(); all.Next(&key, &state); number++ {
		if state != bpf.DataplaneUniqueStateUNIQUE_KNOWN {
			return "a unique address is still new", nil
		}
	}
	if (number > 0) != want {
		return fmt.Sprintf("%d unique addresses are in the maps", number), nil
	}
	return "", nil
}

// comparePrograms wants both programs that pin on one interface, and on no other.
func (m *moving) comparePrograms(number int) (string, error) {
	links, err := m.RA.Netlink().LinkList()
	if err != nil {
		return "", err
	}
	for _, l := range links {
		index, want := l.Attrs().Index, 0
		if index == number {
			want = 2
		}
		if have := programsOn(index); have != want {
			return fmt.Sprintf("%d of our programs are on %s (%d), want %d", have, l.Attrs().Name, index, want), nil
		}
	}
	return "", nil
}

// programsOn counts vippin's programs that pin on an interface of the calling
// thread's namespace.
func programsOn(index int) (ours int) {
	for _, hook := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
		on, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: hook})
		if err != nil {
			continue // it has just gone
		}
		for _, attached := range on.Programs {
			program, err := ebpf.NewProgramFromID(attached.ID)
			if err != nil {
				continue
			}
			if info, err := program.Info(); err == nil && (info.Name == "vippin_ingress" || info.Name == "vippin_egress") {
				ours++
			}
			program.Close()
		}
	}
	return ours
}

// masqueraded counts ra's conntrack entries of flows that were masqueraded to an
// address.
func (s *scene) masqueraded(to netip.Addr) (n int) {
	s.t.Helper()
	s.must(s.RA.Do(func() error {
		conn, err := conntrack.Dial()
		if err != nil {
			return err
		}
		defer conn.Close()
		filter := conntrack.Filter{Status: conntrack.SrcNAT, StatusMask: conntrack.SrcNAT}
		return conn.Dump(s.ctx, filter, func(flow *conntrack.Flow) error {
			if flow.Reply.Dst == to {
				n++
			}
			return nil
		})
	}))
	return n
}

// awaitForgotten waits until the kernel has flushed the flows on an address,
// which it does in the background.
func (s *scene) awaitForgotten(to netip.Addr) {
	s.t.Helper()
	s.must(s.await("the kernel to forget the flows on "+to.String(), func() (bool, error) { return s.masqueraded(to) == 0, nil }))
}

// warned waits for a warning of ra's status that contains each of the words.
func (s *scene) warned(words ...string) {
	s.t.Helper()
	var warnings []string
	err := s.await(fmt.Sprintf("a warning with %q", words), func() (bool, error) {
		warnings = s.status(s.RA).Warnings
		return slices.ContainsFunc(warnings, func(warning string) bool {
			return !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(warning, word) })
		}), nil
	})
	if err != nil {
		s.t.Errorf("%v; warnings are %q", err, warnings)
	}
}

// becomes waits until ra has a role.
func (s *scene) becomes(role policy.Role) {
	s.t.Helper()
	s.must(s.await(role.String()+" on ra", func() (bool, error) { return s.status(s.RA).Groups[0].Role == role, nil }))
}

// unwarned wants no warnings and the role MASTER.
func (s *scene) unwarned() {
	s.t.Helper()
	s.becomes(policy.RoleMaster)
	if status := s.status(s.RA); len(status.Warnings) != 0 {
		s.t.Errorf("warnings %q, want none", status.Warnings)
	}
}

// fillEgress attaches to an interface of ra as many programs as the kernel
// takes, which do nothing, and returns a function that removes the last ones.
func (s *scene) fillEgress(ifname string) (makeRoom func()) {
	s.t.Helper()
	var links []link.Link
	s.t.Cleanup(func() {
		for _, l := range links {
			l.Close()
		}
	})
	one := func() error {
		nothing, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Type: ebpf.SchedCLS, License: "Apache-2.0",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}, // TCX_NEXT
		})
		if err != nil {
			return err
		}
		defer nothing.Close()
		l, err := link.AttachTCX(link.TCXOptions{Interface: s.number(ifname), Program: nothing, Attach: ebpf.AttachTCXEgress})
		if err == nil {
			links = append(links, l)
		}
		return err
	}
	s.must(s.RA.Do(func() (err error) {
		for err == nil && len(links) < 1000 {
			err = one()
		}
		if !errors.Is(err, unix.ERANGE) {
			return fmt.Errorf("fill the egress hook of %s: %d programs, %w", ifname, len(links), err)
		}
		return nil
	}))
	return func() {
		for _, l := range links[len(links)-2:] {
			l.Close()
		}
		links = links[:len(links)-2]
	}
}

// takeOffIngress detaches vippin's program from the ingress hook of an interface
// of ra.
func (s *scene) takeOffIngress(ifname string) {
	s.t.Helper()
	path := filepath.Join(s.RA.BPFFS, "links", fmt.Sprintf("%d-ingress", s.number(ifname)))
	l, err := link.LoadPinnedLink(path, nil)
	s.must(err)
	defer l.Close()
	s.must(l.Detach())
}
