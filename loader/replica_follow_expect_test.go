// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vippin/policy"
)

// ftpNAT gives FTP its helper and everything the VIP: flows with a helper are not
// pinned, so only an explicit rule makes them survive.
const ftpNAT = `
table inet nat {
	ct helper ftp { type "ftp" protocol tcp; }
	chain helpers { type filter hook prerouting priority filter; tcp dport 21 ct helper set "ftp"; }
	chain post {
		type nat hook postrouting priority srcnat
		oifname "wan0" ip saddr 192.168.1.100 snat ip to 198.51.100.2
		oifname "wan0" masquerade
	}
}`

// TestFollowExpectations: what FTP announces is told with its control
// connection, and what comes of it with its master.
func TestFollowExpectations(t *testing.T) {
	l := newReplicaLab(t, ftpNAT)
	err := inNamespace(l.lan, func() error { // a host whose address is longer than the VIP
		peer, err := netlink.LinkByName("peer")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("192.168.1.100/24")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(peer, addr)
	})
	if err != nil {
		t.Fatal(err)
	}
	l.follow(t)
	client, server := connect(t, l.lan, l.wan, "192.168.1.100:5000", "198.51.100.9:21", "198.51.100.9:21")
	control := l.await(t, "control connection", func(h *heard) bool {
		return seenFrom(unix.IPPROTO_TCP, "192.168.1.100:5000")(h) && h.flow.Bits&policy.FlowAssured != 0
	})
	if f := control.flow; f.To != end(vip+":5000") || f.Extra == nil || f.Extra.Helper != "ftp" {
		t.Errorf("control connection: %+v, %+v", f, f.Extra)
	}
	say := func(from, to *net.TCPConn, line string) string {
		t.Helper()
		if _, err := fmt.Fprintf(from, "%s\r\n", line); err != nil {
			t.Fatal(err)
		}
		text, err := bufio.NewReader(to).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	say(server, client, "220 ready") // the helper takes a line for one after a line
	say(client, server, "PASV")
	say(server, client, "227 Entering Passive Mode (198,51,100,9,27,16)") // port 6928
	expects := func(dst policy.End) func(*heard) bool {
		return func(h *heard) bool { return h.kind == ExpectationSeen && h.expect.Dst == dst }
	}
	passive := l.await(t, "passive expectation", expects(end("198.51.100.9:6928"))).expect
	if passive.Master != control.flow.FlowKey || passive.Src != end("192.168.1.100:0") || passive.AnySrc ||
		passive.Proto != unix.IPPROTO_TCP || passive.Helper != "ftp" || passive.Timeout == 0 {
		t.Errorf("passive expectation: %+v", passive)
	}
	text := say(client, server, "PORT 192,168,1,100,27,17") // port 6929
	var high, low int
	if _, err := fmt.Sscanf(text, "PORT 198,51,100,2,%d,%d", &high, &low); err != nil {
		t.Fatalf("the server read %q", text)
	}
	public := policy.MakeEnd(netip.AddrPortFrom(netip.MustParseAddr(vip), uint16(high<<8|low)))
	active := l.await(t, "active expectation", expects(public)).expect
	if active.Master != control.flow.FlowKey || active.Src != end("198.51.100.9:0") || active.NAT != end("0.0.0.0:6929") ||
		!active.NATReply || active.Function != "nat-follow-master" {
		t.Errorf("active expectation: %+v", active)
	}
	// Say something after it: the line became shorter.
	say(client, server, "NOOP")
	say(server, client, "200 so what")
	adjusted := l.await(t, "adjusted sequence numbers", func(h *heard) bool {
		return h.flow.FlowKey == control.flow.FlowKey && h.flow.Extra != nil && h.flow.Extra.Adjust[0] != policy.SeqAdjust{}
	})
	if got := adjusted.flow.Extra.Adjust[0].After; int(got) != len(text)-len("PORT 192,168,1,100,27,17\r\n") {
		t.Errorf("adjusted by %+v, the line is %q", adjusted.flow.Extra.Adjust, text)
	}
	told := map[policy.End]bool{}
	if err := l.replica.Expectations(context.Background(), func(e *policy.Expectation) error {
		told[e.Dst] = e.Master == control.flow.FlowKey
		return nil
	}); err != nil || len(told) != 1 || !told[public] { // FTP expects one at a time
		t.Errorf("dumped expectations to %v, %v", told, err)
	}

	connect(t, l.wan, l.lan, "198.51.100.9:20", public.String(), "192.168.1.100:6929")
	child := l.await(t, "data connection", func(h *heard) bool {
		return seenFrom(unix.IPPROTO_TCP, "198.51.100.9:20")(h) && h.flow.Bits&policy.FlowAssured != 0
	})
	if f := child.flow; f.Dst != public || f.From != end("192.168.1.100:6929") || f.To != end("198.51.100.9:20") ||
		f.Extra == nil || f.Extra.Master != control.flow.FlowKey || f.Group != "core" {
		t.Errorf("data connection: %+v, %+v", f, f.Extra)
	}
	say(server, client, "227 Entering Passive Mode (198,51,100,9,27,18)")
	l.await(t, "another expectation", expects(end("198.51.100.9:6930")))
	l.testUnwantedExpectations(t)
}

// testUnwantedExpectations: nobody can go on with those of a flow that is not
// told.
func (l *replicaLab) testUnwantedExpectations(t *testing.T) {
	t.Helper()
	count := func() (n int) {
		if err := l.replica.Expectations(context.Background(), func(*policy.Expectation) error { n++; return nil }); err != nil {
			t.Error(err)
		}
		return n
	}
	before := count()
	l.setSync(func(s *policy.SyncConfig) { s.Ignore = []netip.Prefix{netip.MustParsePrefix("192.168.1.100/32")} })
	if n := count(); before == 0 || n != 0 {
		t.Errorf("%d expectations of a flow that is ignored, %d else", n, before)
	}
	l.setSync(func(s *policy.SyncConfig) { s.Expect = false })
	if n := count(); n != 0 {
		t.Errorf("%d expectations, though they are not wanted", n)
	}
}
