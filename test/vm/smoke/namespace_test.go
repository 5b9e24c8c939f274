// SPDX-License-Identifier: Apache-2.0

//go:build vmsmoke

package smoke

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namespace is a network namespace that goes when the test ends.
type namespace struct {
	name string
	fd   netns.NsHandle
	*netlink.Handle
}

func newNamespace(t *testing.T, name string) *namespace {
	t.Helper()
	ns := &namespace{name: fmt.Sprintf("%s-%d", name, os.Getpid())}
	err := onOwnThread(func() (err error) {
		ns.fd, err = netns.NewNamed(ns.name)
		return err
	})
	if err != nil {
		t.Fatalf("make namespace %s: %v", ns.name, err)
	}
	if ns.Handle, err = netlink.NewHandleAt(ns.fd); err != nil {
		t.Fatalf("talk to namespace %s: %v", ns.name, err)
	}
	t.Cleanup(func() {
		ns.Handle.Close()
		ns.fd.Close()
		if err := netns.DeleteNamed(ns.name); err != nil {
			t.Errorf("remove namespace %s: %v", ns.name, err)
		}
	})
	// Addresses are of use at once, those of links to come included.
	ns.sysctl(t, "ipv6/conf/default/accept_dad", "0")
	ns.sysctl(t, "ipv6/conf/default/dad_transmits", "0")
	ns.up(t, "lo")
	return ns
}

// onOwnThread runs f on a thread that is thrown away after, so that f may leave
// it in any namespace.
func onOwnThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// do runs f inside the namespace: sockets it opens and processes it starts stay
// there. /sys and bpffs stay those of the whole machine.
func (ns *namespace) do(f func() error) error {
	return onOwnThread(func() error {
		if err := netns.Set(ns.fd); err != nil {
			return fmt.Errorf("enter namespace %s: %w", ns.name, err)
		}
		return f()
	})
}

func (ns *namespace) must(t *testing.T, f func() error) {
	t.Helper()
	if err := ns.do(f); err != nil {
		t.Fatalf("in %s: %v", ns.name, err)
	}
}

func (ns *namespace) link(t *testing.T, name string) netlink.Link {
	t.Helper()
	link, err := ns.LinkByName(name)
	if err != nil {
		t.Fatalf("find %s in %s: %v", name, ns.name, err)
	}
	return link
}

func (ns *namespace) up(t *testing.T, name string) {
	t.Helper()
	if err := ns.LinkSetUp(ns.link(t, name)); err != nil {
		t.Fatalf("set %s in %s up: %v", name, ns.name, err)
	}
}

// addr adds addresses without duplicate address detection. An IPv6 /128 is made
// deprecated, as keepalived makes its VIPs.
func (ns *namespace) addr(t *testing.T, name string, prefixes ...string) {
	t.Helper()
	link := ns.link(t, name)
	for _, prefix := range prefixes {
		addr, err := netlink.ParseAddr(prefix)
		if err != nil {
			t.Fatal(err)
		}
		if ones, bits := addr.Mask.Size(); bits == 128 {
			addr.Flags = unix.IFA_F_NODAD
			if ones == 128 {
				addr.ValidLft, addr.PreferedLft = 1<<32-1, 0 // for ever, never chosen
			}
		}
		if err := ns.AddrAdd(link, addr); err != nil {
			t.Fatalf("add %s to %s in %s: %v", prefix, name, ns.name, err)
		}
	}
}

func (ns *namespace) defaultRoutes(t *testing.T, gateways ...string) {
	t.Helper()
	for _, gateway := range gateways {
		if err := ns.RouteAdd(&netlink.Route{Gw: net.ParseIP(gateway)}); err != nil {
			t.Fatalf("route by %s in %s: %v", gateway, ns.name, err)
		}
	}
}

// sysctl writes a value below /proc/sys/net.
func (ns *namespace) sysctl(t *testing.T, name, value string) {
	t.Helper()
	ns.must(t, func() error { return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0o644) })
}

// vlanOn adds NAME.ID with 802.1Q tag id above a link, and moves it elsewhere if
// told to.
func (ns *namespace) vlanOn(t *testing.T, parent string, id int, to *namespace) string {
	t.Helper()
	name := fmt.Sprintf("%s.%d", parent, id)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = name, ns.link(t, parent).Attrs().Index
	if err := ns.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: id, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}); err != nil {
		t.Fatalf("add %s in %s: %v", name, ns.name, err)
	}
	if to == nil || to == ns {
		ns.up(t, name)
		return name
	}
	if err := ns.LinkSetNsFd(ns.link(t, name), int(to.fd)); err != nil {
		t.Fatalf("move %s to %s: %v", name, to.name, err)
	}
	to.up(t, name)
	return name
}
