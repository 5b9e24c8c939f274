// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	vnl "github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Addresses of the lab: client -- lan router wan -- server.
var (
	client4 = netip.MustParseAddr("192.168.77.2")
	client6 = netip.MustParseAddr("2001:db8:77::2")
	router4 = netip.MustParseAddr("198.51.100.1")
	router6 = netip.MustParseAddr("2001:db8:100::1")
	server4 = netip.MustParseAddr("198.51.100.2")
	server6 = netip.MustParseAddr("2001:db8:100::2")
	vip4    = netip.MustParseAddr("198.51.100.50")
	vip6    = netip.MustParseAddr("2001:db8:100::50")
)

// space is a network namespace without a name: the kernel removes it with the
// last thread, handle and socket in it, also when the test is killed.
type space struct {
	t      *testing.T
	handle netns.NsHandle
}

func newSpace(t *testing.T) *space {
	t.Helper()
	s := &space{t: t}
	err := onThread(func() (err error) {
		s.handle, err = netns.New()
		return err
	})
	if err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	t.Cleanup(func() { _ = s.handle.Close() })
	s.do(func() error { return linkUp("lo") })
	return s
}

// onThread runs fn on a thread of its own, which ends with it.
func onThread(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is not used again
		result <- fn()
	}()
	return <-result
}

// do runs fn inside the namespace. Sockets and processes that fn makes stay
// in it.
func (s *space) do(fn func() error) {
	s.t.Helper()
	err := onThread(func() error {
		if err := netns.Set(s.handle); err != nil {
			return fmt.Errorf("enter namespace: %w", err)
		}
		return fn()
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

func linkUp(name string, addrs ...string) error {
	link, err := vnl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	for _, text := range addrs {
		addr, err := vnl.ParseAddr(text)
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		if strings.HasSuffix(text, "/128") { // deprecated, as keepalived's
			addr.PreferedLft, addr.ValidLft = 0, math.MaxUint32
		}
		if err := vnl.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add %s to %s: %w", text, name, err)
		}
	}
	return vnl.LinkSetUp(link)
}

// sysctl writes settings of the calling thread's network namespace.
func sysctl(settings ...string) error {
	for _, setting := range settings {
		name, value, _ := strings.Cut(setting, "=")
		if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
			return fmt.Errorf("set %s: %w", setting, err)
		}
	}
	return nil
}

// nft runs rules in the calling thread's network namespace.
func nft(rules string) error {
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, output.String())
	}
	return nil
}

type lab struct {
	client, router, server *space
	conn                   *Conn // of the router
}

// masquerade moves source ports, so that no router without state makes the
// same mapping by luck.
const masquerade = `
flush ruleset
table inet lab {
	chain post {
		type nat hook postrouting priority srcnat
		oifname wan meta l4proto { tcp, udp } masquerade to :40000-40999
		oifname wan masquerade
	}
}`

// nothing has a rule that matches no packet: without one the kernel would not
// even follow connections in this namespace.
const nothing = `
flush ruleset
table inet lab {
	chain post {
		type nat hook postrouting priority srcnat
		oifname nowhere masquerade
	}
}`

func newLab(t *testing.T, rules string) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	l := &lab{client: newSpace(t), router: newSpace(t), server: newSpace(t)}
	l.router.do(func() error {
		if err := errors.Join(
			vnl.LinkAdd(&vnl.Veth{LinkAttrs: vnl.LinkAttrs{Name: "lan"}, PeerName: "eth0", PeerNamespace: vnl.NsFd(l.client.handle)}),
			vnl.LinkAdd(&vnl.Veth{LinkAttrs: vnl.LinkAttrs{Name: "wan"}, PeerName: "eth0", PeerNamespace: vnl.NsFd(l.server.handle)}),
		); err != nil {
			return fmt.Errorf("make veth pairs: %w", err)
		}
		if err := nft(rules); err != nil {
			return err
		}
		return errors.Join(
			linkUp("lan", "192.168.77.1/24", "2001:db8:77::1/64"),
			linkUp("wan", "198.51.100.1/24", "2001:db8:100::1/64", "198.51.100.50/32", "2001:db8:100::50/128"),
			sysctl("net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1", "net/netfilter/nf_conntrack_acct=1",
				"net/netfilter/nf_conntrack_timestamp=1", "net/netfilter/nf_conntrack_events=1"),
		)
	})
	l.client.do(func() error {
		err := linkUp("eth0", "192.168.77.2/24", "2001:db8:77::2/64")
		return errors.Join(err, defaultRoute("192.168.77.1"), defaultRoute("2001:db8:77::1"))
	})
	l.server.do(func() error { return linkUp("eth0", "198.51.100.2/24", "2001:db8:100::2/64") })
	l.router.do(func() (err error) {
		l.conn, err = Dial()
		return err
	})
	t.Cleanup(func() {
		if err := l.conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func defaultRoute(gateway string) error {
	link, err := vnl.LinkByName("eth0")
	if err != nil {
		return err
	}
	return vnl.RouteAdd(&vnl.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gateway)})
}

func (l *lab) rules(rules string) {
	l.router.t.Helper()
	l.router.do(func() error { return nft(rules) })
}

// patience is how long anything may take before the test gives up.
const patience = 10 * time.Second

func (s *space) udp(local netip.AddrPort) *net.UDPConn {
	s.t.Helper()
	var conn *net.UDPConn
	s.do(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(local))
		return err
	})
	s.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return conn
}

func (s *space) listenTCP(local netip.AddrPort) *net.TCPListener {
	s.t.Helper()
	var listener *net.TCPListener
	s.do(func() (err error) {
		listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(local))
		return err
	})
	s.t.Cleanup(func() { _ = listener.Close() })
	_ = listener.SetDeadline(time.Now().Add(patience))
	return listener
}

func (s *space) dialTCP(local, remote netip.AddrPort) *net.TCPConn {
	s.t.Helper()
	var conn *net.TCPConn
	s.do(func() (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		dialer := net.Dialer{}
		conn, err = dialer.DialTCP(ctx, "tcp", local, remote)
		return err
	})
	s.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return conn
}

// rawICMP opens a raw socket that sends and receives ICMP of local's version.
func (s *space) rawICMP(local netip.Addr) *net.IPConn {
	s.t.Helper()
	network := "ip4:icmp"
	if local.Is6() {
		network = "ip6:ipv6-icmp"
	}
	var conn *net.IPConn
	s.do(func() (err error) {
		conn, err = net.ListenIP(network, &net.IPAddr{IP: local.AsSlice()})
		return err
	})
	s.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return conn
}
