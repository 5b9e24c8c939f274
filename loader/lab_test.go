// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"vippin/policy"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// lab is a router (the test's own namespace) that masquerades inside hosts
// 192.168.1.10 and .11 to a server 198.51.100.9: its address there is
// 198.51.100.3, the VIP 198.51.100.2.
type lab struct {
	lan, wan netns.NsHandle
	ifindex  int // of wan0

	mu   sync.Mutex
	seen map[string]map[netip.AddrPort]int // by flow: the sources the server saw

	accepted chan net.Conn // the server's ends
}

func newLab(t *testing.T) *lab {
	t.Helper()
	return newLabAt(t, 0, 0)
}

func emptyLab() *lab {
	return &lab{seen: make(map[string]map[netip.AddrPort]int), accepted: make(chan net.Conn, 1000)}
}

// newLabAt gives the router's interfaces these numbers; 0: any.
func newLabAt(t *testing.T, lanIndex, wanIndex int) *lab {
	t.Helper()
	router := enterNamespace(t)
	l := emptyLab()
	l.lan = l.sideAt(t, router, lanIndex, "lan0", "192.168.1.1/24", "192.168.1.10/24", "192.168.1.11/24")
	l.wan = l.sideAt(t, router, wanIndex, "wan0", "198.51.100.3/24", "198.51.100.9/24")
	l.translate(t)
	return l
}

// translate makes wan0 the router's way out, with the VIP.
func (l *lab) translate(t *testing.T) {
	t.Helper()
	inside := func() error {
		return netlink.RouteAdd(&netlink.Route{Gw: net.IPv4(192, 168, 1, 1)})
	}
	if err := inNamespace(l.lan, inside); err != nil {
		t.Fatalf("add inside route: %v", err)
	}
	wan := up(t, "wan0")
	l.ifindex = wan.Attrs().Index
	addAddr(t, wan, "198.51.100.2/32")
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		t.Fatalf("forward: %v", err)
	}
	nft(t, `add table ip nat; add chain ip nat post { type nat hook postrouting priority srcnat; };
		add rule ip nat post oifname "wan0" masquerade`)
}

// side makes a namespace and a cable to it.
func (l *lab) side(t *testing.T, router netns.NsHandle, name, ours string, theirs ...string) netns.NsHandle {
	t.Helper()
	return l.sideAt(t, router, 0, name, ours, theirs...)
}

func (l *lab) sideAt(t *testing.T, router netns.NsHandle, ifindex int, name, ours string, theirs ...string) netns.NsHandle {
	t.Helper()
	ns, err := netns.New() // and enters it
	if err == nil {
		err = netns.Set(router)
	}
	if err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	if ifindex == 0 {
		addVeth(t, name, "peer")
	} else {
		addVethAt(t, ifindex, name, "peer")
	}
	peer := up(t, "peer")
	if err := netlink.LinkSetNsFd(peer, int(ns)); err != nil {
		t.Fatal(err)
	}
	if ours != "" {
		addAddr(t, up(t, name), ours)
	}
	err = inNamespace(ns, func() error {
		peer, err := netlink.LinkByName("peer")
		if err != nil {
			return err
		}
		for _, text := range theirs {
			addr, err := netlink.ParseAddr(text)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(peer, addr); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(peer)
	})
	if err != nil {
		t.Fatalf("set up %s: %v", name, err)
	}
	return ns
}

func addAddr(t *testing.T, l netlink.Link, text string) {
	t.Helper()
	addr, err := netlink.ParseAddr(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(l, addr); err != nil {
		t.Fatalf("add %s: %v", text, err)
	}
}

func nft(t *testing.T, rules string) {
	t.Helper()
	command := exec.Command("nft", "-f", "-")
	command.Stdin = strings.NewReader(rules)
	if output, err := command.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, output)
	}
}

// plan is onePin on wan0, as MASTER without VRRP.
func (l *lab) plan(t *testing.T, d *Dataplane, enabled bool) {
	t.Helper()
	if err := d.SetRole(1, policy.RoleMaster, true); err != nil {
		t.Fatal(err)
	}
	mustApply(t, d, onePin(l.ifindex, "wan0", enabled))
}

// serve answers every line with itself, TCP and UDP port 7777, and notes who
// sent it. A line is the name of its flow, and # and a number.
func (l *lab) serve(t *testing.T) {
	t.Helper()
	err := inNamespace(l.wan, func() error {
		listener, err := net.Listen("tcp4", "198.51.100.9:7777")
		if err != nil {
			return err
		}
		datagrams, err := net.ListenPacket("udp4", "198.51.100.9:7777")
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = listener.Close(); _ = datagrams.Close() })
		go l.serveUDP(datagrams)
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				l.accepted <- conn
				go l.serveTCP(conn)
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatalf("serve: %v", err)
	}
}

func (l *lab) note(line []byte, from net.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	name, _, _ := strings.Cut(string(line), "#")
	name = strings.TrimSpace(name)
	if l.seen[name] == nil {
		l.seen[name] = make(map[netip.AddrPort]int)
	}
	l.seen[name][netip.MustParseAddrPort(from.String())]++
}

func (l *lab) serveUDP(conn net.PacketConn) {
	buffer := make([]byte, 64)
	for {
		n, from, err := conn.ReadFrom(buffer)
		if err != nil {
			return
		}
		l.note(buffer[:n], from)
		_, _ = conn.WriteTo(buffer[:n], from)
	}
}

func (l *lab) serveTCP(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	buffer := make([]byte, lineLen)
	for {
		if _, err := io.ReadFull(conn, buffer); err != nil {
			return
		}
		l.note(buffer, conn.RemoteAddr())
		if _, err := conn.Write(buffer); err != nil {
			return
		}
	}
}

const lineLen = 16

// client is one inside host's connection.
type client struct {
	name  string
	conn  net.Conn
	udp   bool
	asked int
}

func (l *lab) dial(t *testing.T, name, network, from string) *client {
	t.Helper()
	c := &client{name: name, udp: strings.HasPrefix(network, "udp")}
	err := inNamespace(l.lan, func() (err error) {
		dialer := net.Dialer{Timeout: patience}
		source := netip.MustParseAddrPort(from)
		if c.udp {
			dialer.LocalAddr = net.UDPAddrFromAddrPort(source)
		} else {
			dialer.LocalAddr = net.TCPAddrFromAddrPort(source)
		}
		c.conn, err = dialer.Dial(network, "198.51.100.9:7777")
		return err
	})
	if err != nil {
		t.Fatalf("dial %s: %v", name, err)
	}
	t.Cleanup(func() { _ = c.conn.Close() })
	return c
}

// ask sends the flow's name with a number and waits for its echo; datagrams are repeated,
// so that echoes of earlier ones may come first.
func (c *client) ask() error {
	c.asked++
	line := fmt.Appendf(nil, "%-*s#%03d", lineLen-4, c.name, c.asked%1000)
	answer := make([]byte, lineLen)
	deadline := time.Now().Add(patience)
	for {
		if _, err := c.conn.Write(line); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		wait := deadline
		if c.udp {
			wait = time.Now().Add(500 * time.Millisecond)
		}
		if err := c.conn.SetReadDeadline(wait); err != nil {
			return err
		}
		var err error
		for err == nil && string(answer) != string(line) {
			_, err = io.ReadFull(c.conn, answer)
		}
		if err == nil {
			return nil
		}
		if !c.udp || !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(deadline) {
			return fmt.Errorf("%s: no echo: %v", c.name, err)
		}
	}
}

func mustAsk(t *testing.T, clients ...*client) {
	t.Helper()
	for _, c := range clients {
		if err := c.ask(); err != nil {
			t.Error(err)
		}
	}
}

// sources are those the server saw of a flow.
func (l *lab) sources(name string) (list []netip.AddrPort) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for source := range l.seen[name] {
		list = append(list, source)
	}
	return list
}

// source is the only one.
func (l *lab) source(t *testing.T, name string) netip.AddrPort {
	t.Helper()
	list := l.sources(name)
	if len(list) != 1 {
		t.Fatalf("%s came from %v, want one source", name, list)
	}
	return list[0]
}

// await waits for a condition.
func await(t *testing.T, what string, met func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !met(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for this: %s", patience, what)
		}
	}
}
