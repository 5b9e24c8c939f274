// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"testing"
	"time"

	"vippin/policy"
)

// TestMarksTraffic: on real packets, and whatever else is in the mark: each
// inside host is taken by its pin; what is not masqueraded is not taken for it; and
// the next flow on the tuple of one that was left alone is decided on anew.
func TestMarksTraffic(t *testing.T) {
	l := newLab(t)
	l.serve(t)
	const second = "198.51.100.7"
	addAddr(t, up(t, "wan0"), second+"/32")
	d := mustLoad(t, Options{BPFFS: testBPFFS(t), noBTF: true})
	plan := twoPins(onePin(l.ifindex, "wan0", true), 2)
	plan.Interfaces[0].Sources[1].Prefix = netip.MustParsePrefix("192.168.1.11/32")
	for _, pin := range plan.Pins {
		if err := d.SetRole(pin.ID, policy.RoleMaster, true); err != nil {
			t.Fatal(err)
		}
	}
	mustApply(t, d, plan)
	nft(t, `table inet stale { chain c { type filter hook forward priority filter; meta mark set 0xc2000005; }; }`)
	l.forwardPort(t)

	for name, flow := range map[string]struct{ from, want string }{
		"first": {"192.168.1.10:43000", vip}, "second": {"192.168.1.11:43000", second},
	} {
		for _, network := range []string{"tcp4", "udp4"} {
			mustAsk(t, l.dial(t, name+network, network, flow.from))
			if got := l.source(t, name+network).Addr().String(); got != flow.want {
				t.Errorf("%s by %s came from %s, want %s", name, network, got, flow.want)
			}
		}
	}
	before := mustCount(t, d)
	l.askForwarded(t)
	if after := mustCount(t, d); after.TotalUnpinned() != before.TotalUnpinned() || after.Pinned != before.Pinned {
		t.Errorf("a forwarded port counted: %+v", after)
	}

	if err := switchPin(d, 1, false); err != nil {
		t.Fatal(err)
	}
	off := l.dial(t, "off", "udp4", "192.168.1.10:43001")
	mustAsk(t, off)
	_ = off.conn.Close()
	if err := switchPin(d, 1, true); err != nil {
		t.Fatal(err)
	}
	if output, err := exec.Command("conntrack", "-D", "-p", "udp", "--orig-port-src", "43001").CombinedOutput(); err != nil {
		t.Fatalf("conntrack -D: %v: %s", err, output)
	}
	mustAsk(t, l.dial(t, "on", "udp4", "192.168.1.10:43001"))
	for name, want := range map[string]string{"off": unique, "on": vip} {
		if got := l.source(t, name).Addr().String(); got != want {
			t.Errorf("switched %s it came from %s, want %s", name, got, want)
		}
	}
}

// forwardPort makes a service of an inside host known at the router's own address.
func (l *lab) forwardPort(t *testing.T) {
	t.Helper()
	nft(t, `table ip forwards { chain c { type nat hook prerouting priority dstnat;
		iifname "wan0" ip daddr 198.51.100.3 tcp dport 8080 dnat to 192.168.1.10; }; }
		add rule ip nat post oifname "lan0" masquerade`) // so that its answers are of a flow with source NAT, too
	err := inNamespace(l.lan, func() error {
		listener, err := net.Listen("tcp4", "192.168.1.10:8080")
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = listener.Close() })
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				_, _ = fmt.Fprint(conn, conn.RemoteAddr())
				_ = conn.Close()
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// askForwarded has the server use it.
func (l *lab) askForwarded(t *testing.T) {
	t.Helper()
	err := inNamespace(l.wan, func() error {
		conn, err := net.DialTimeout("tcp4", "198.51.100.3:8080", patience/4)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		if err := conn.SetDeadline(time.Now().Add(patience / 4)); err != nil {
			return err
		}
		_, err = io.ReadAll(conn)
		return err
	})
	if err != nil {
		t.Errorf("the forwarded port: %v", err)
	}
}
