// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// The second router's own addresses outside.
const peerUnique, peerUnique6 = "198.51.100.4", "2001:db8:100::4"

// pair is a replicaLab with a second router, which is BACKUP, has cables that are
// not plugged in, and would masquerade to other ports. It lets in nothing from
// outside that it does not know, and takes no connection in mid-stream.
type pair struct {
	*replicaLab
	ns   netns.NsHandle
	b    *Dataplane
	peer *Replica
	conn *conntrack.Conn // of the second router

	inside []string // the inside hosts' addresses
}

const statefulRouter = `
table inet nat {
	chain post { type nat hook postrouting priority srcnat;
		oifname "wan0" meta l4proto { tcp, udp } masquerade to :40000-40999
		oifname "wan0" masquerade
	}
}
table inet wall {
	chain stateful {
		ct state established,related accept
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } accept
		iifname "wan0" counter drop
		ct state invalid counter drop
	}
	chain in { type filter hook input priority filter; jump stateful; }
	chain forward { type filter hook forward priority filter; jump stateful; }
}`

func newPair(t *testing.T, first string) *pair {
	t.Helper()
	p := &pair{
		replicaLab: newReplicaLab(t, first), inside: []string{"192.168.1.10/24", "192.168.1.11/24", "2001:db8:1::10/64"},
	}
	router, err := netns.Get()
	if err == nil {
		p.ns, err = netns.New()
		err = errors.Join(err, netns.Set(router))
	}
	if err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	t.Cleanup(func() { _, _ = p.ns.Close(), router.Close() })
	dir := testBPFFS(t)
	p.inPeer(t, func() error {
		if err := errors.Join(
			twoEnds("lan0", p.lan), twoEnds("wan0", p.wan),
			plug("lo"), plug("lan0", "192.168.1.1/24", "2001:db8:1::1/64"), plug("wan0", peerUnique+"/24", peerUnique6+"/64"),
			sysctls("net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1", "net/netfilter/nf_conntrack_tcp_loose=0",
				"net/netfilter/nf_conntrack_events=1"), rules(statefulRouter)); err != nil {
			return err
		}
		if p.b, err = Load(Options{BPFFS: dir, MaxFlows: 4096}); err != nil {
			return err
		}
		if p.peer, err = p.b.NewReplica(ReplicaOptions{Sync: policy.DefaultConfig("", "").Sync}); err != nil {
			return err
		}
		p.conn, err = conntrack.Dial()
		return err
	})
	t.Cleanup(func() {
		if err := errors.Join(p.conn.Close(), p.peer.Close(), p.b.Close()); err != nil {
			t.Error(err)
		}
	})
	p.setPeerRole(t, policy.RoleBackup)
	return p
}

// inPeer runs do on the second router.
func (p *pair) inPeer(t *testing.T, do func() error) {
	t.Helper()
	if err := inNamespace(p.ns, do); err != nil {
		t.Fatalf("on the second router: %v", err)
	}
}

func twoEnds(name string, peer netns.NsHandle) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "peer2", PeerNamespace: netlink.NsFd(peer)})
}

// plug gives a link addresses and sets it up.
func plug(name string, addresses ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, text := range addresses {
		addr, err := netlink.ParseAddr(text)
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		if strings.HasSuffix(text, "/128") { // deprecated, as keepalived's
			addr.ValidLft, addr.PreferedLft = 1<<30, 0
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add %s to %s: %w", text, name, err)
		}
	}
	return netlink.LinkSetUp(link)
}

func sysctls(settings ...string) error {
	for _, setting := range settings {
		name, value, _ := strings.Cut(setting, "=")
		if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}

func rules(text string) error {
	command := exec.Command("nft", "-f", "-")
	command.Stdin = strings.NewReader(text)
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, output)
	}
	return nil
}

// peerPlan has the pin under other numbers than the first router has it.
func peerPlan(ifindex int) policy.Plan {
	plan := onePin(ifindex, "wan0", true)
	plan.Groups[0].ID = 7
	pin := &plan.Pins[0]
	pin.ID, pin.Slot, pin.Group = 5, 3, 7
	pin.VIP6, pin.VIPs = netip.MustParseAddr(vip6), addrs(vip, vip6)
	face := &plan.Interfaces[0]
	face.Slot, face.VIPs, face.Uniques = 3, addrs(vip, vip6), addrs(peerUnique, peerUnique6)
	for i := range face.Sources {
		face.Sources[i].Pin = 5
	}
	return plan
}

func (p *pair) setPeerRole(t *testing.T, role policy.Role) {
	t.Helper()
	p.inPeer(t, func() error {
		wan, err := netlink.LinkByName("wan0")
		if err != nil {
			return err
		}
		plan := peerPlan(wan.Attrs().Index)
		if err := errors.Join(p.b.SetRole(5, role, true), p.b.Apply(plan)); err != nil {
			return err
		}
		seen, err := Observe()
		p.peer.SetPlan(plan, seen)
		return err
	})
}

// failOver pulls the first router's cables and plugs in the second one's, which
// gets the VIPs.
func (p *pair) failOver(t *testing.T) {
	t.Helper()
	p.inPeer(t, func() error { return plug("wan0", vip+"/32", vip6+"/128") })
	p.setPeerRole(t, policy.RoleMaster)
	for ns, addresses := range map[netns.NsHandle][]string{
		p.lan: p.inside, p.wan: {"198.51.100.9/24", "2001:db8:100::9/64"},
	} {
		err := inNamespace(ns, func() error {
			old, err := netlink.LinkByName("peer")
			if err != nil {
				return err
			}
			if err := errors.Join(netlink.LinkDel(old), plug("peer2", addresses...)); err != nil {
				return err
			}
			if ns == p.wan {
				return nil
			}
			return errors.Join(netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP("192.168.1.1")}),
				netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP("2001:db8:1::1")}))
		})
		if err != nil {
			t.Fatalf("plug the second router in: %v", err)
		}
	}
}

// told dumps what the first router would tell.
func (l *replicaLab) told(t *testing.T) (flows []policy.Flow) {
	t.Helper()
	err := l.replica.Dump(context.Background(), func(flow *policy.Flow) error {
		copied := *flow
		if flow.Extra != nil {
			extra := *flow.Extra
			copied.Extra = &extra
		}
		flows = append(flows, copied)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return flows
}

func installations(flows []policy.Flow) []Installation {
	list := make([]Installation, len(flows))
	for i := range flows {
		list[i].Flow = &flows[i]
	}
	return list
}

// mustInstall installs flows with one outcome.
func mustInstall(t *testing.T, r *Replica, list []Installation, want Outcome) {
	t.Helper()
	outcomes, err := r.Install(list)
	if err != nil {
		t.Fatal(err)
	}
	for i, got := range outcomes {
		if got != want {
			t.Errorf("%+v: %v, want %v", *list[i].Flow, got, want)
		}
	}
}

// stream is a TCP connection or a pair of UDP sockets that goes on over a
// failover.
type stream struct {
	name   string
	source netip.AddrPort // as the server saw it before
	again  func() netip.AddrPort
}

func (s *stream) goesOn(t *testing.T) {
	t.Helper()
	if got := s.again(); got != s.source {
		t.Errorf("%s comes from %v now, it came from %v", s.name, got, s.source)
	}
}

// streams opens connections of several inside hosts from the same ports: TCP, UDP
// and pings, over IPv4 and IPv6.
func (l *replicaLab) streams(t *testing.T) (list []*stream) {
	t.Helper()
	servers := make(map[string]*net.UDPConn)
	for _, host := range []string{"192.168.1.10", "192.168.1.11", "2001:db8:1::10"} {
		to, ping := "198.51.100.9", "198.51.100.9"
		if netip.MustParseAddr(host).Is6() {
			to, ping = "2001:db8:100::9", "2001:db8:100::9"
		}
		address := func(port string) string { return net.JoinHostPort(to, port) }
		client, server := connect(t, l.lan, l.wan, net.JoinHostPort(host, "41000"), address("7000"), address("7000"))
		list = append(list, &stream{name: "TCP of " + host, again: func() netip.AddrPort {
			both(t, client, server)
			return unmap(netip.MustParseAddrPort(server.RemoteAddr().String()))
		}})
		inside := socket(t, l.lan, net.JoinHostPort(host, "41001"))
		outside := servers[to]
		if outside == nil {
			outside = socket(t, l.wan, address("7001"))
			servers[to] = outside
		}
		list = append(list, &stream{name: "UDP of " + host, again: func() netip.AddrPort {
			return exchange(t, inside, outside, address("7001"))
		}}, &stream{name: "ping of " + host, again: func() netip.AddrPort { return l.echoFrom(t, host, ping, 77) }})
	}
	for _, s := range list {
		s.source = s.again()
		if a := s.source.Addr().String(); a != vip && a != vip6 {
			t.Fatalf("%s comes from %v, not from a VIP", s.name, s.source)
		}
	}
	return list
}

// both sends a line each way.
func both(t *testing.T, client, server net.Conn) {
	t.Helper()
	for i, way := range [][2]net.Conn{{client, server}, {server, client}} {
		line := fmt.Sprintf("way %d\n", i)
		if _, err := way[0].Write([]byte(line)); err != nil {
			t.Fatalf("write: %v", err)
		}
		_ = way[1].SetReadDeadline(time.Now().Add(patience))
		got, err := bufio.NewReader(way[1]).ReadString('\n')
		if err != nil || got != line {
			t.Fatalf("read %q, %v, want %q", got, err, line)
		}
	}
}

// wireEndOf is a public end with its protocol.
type wireEndOf struct {
	proto uint8
	end   netip.AddrPort
}

// mapped lists the mappings of a dataplane by public end.
func mapped(t *testing.T, d *Dataplane) map[wireEndOf]policy.Mapping {
	t.Helper()
	list := make(map[wireEndOf]policy.Mapping)
	if err := d.Flows(func(m policy.Mapping) bool { list[wireEndOf{m.Proto, m.Public}] = m; return true }); err != nil {
		t.Fatal(err)
	}
	return list
}
