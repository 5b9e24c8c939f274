// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
)

// TestLostGround: mappings of flows that the kernel forgets since their interface
// or address goes stay for some minutes; those of flows that are removed otherwise
// do not. It is the same when the events are lost.
func TestLostGround(t *testing.T) {
	for _, test := range []struct {
		name  string
		lose  func(t *testing.T)
		stays bool
	}{
		{"interface deleted", func(t *testing.T) { deleteLink(t, "wan0") }, true},
		{"interface set down", func(t *testing.T) { must(t, netlink.LinkSetDown(up(t, "wan0"))) }, true},
		{"address removed", func(t *testing.T) { delAddr(t, up(t, "wan0"), "198.51.100.3/24") }, true},
		{"removed by hand", func(t *testing.T) { must(t, netlink.ConntrackTableFlush(netlink.ConntrackTable)) }, false},
	} {
		for _, lost := range []bool{false, true} {
			name := test.name
			if lost {
				name += ", events lost"
			}
			t.Run(name, func(t *testing.T) {
				l, c := newCollectorLab(t)
				forgotten := l.forgotten(t, c, !lost)
				test.lose(t)
				forgotten()
				if lost {
					must(t, c.reconcile(context.Background()))
				}
				want := 2
				if test.stays {
					want = 0
				}
				mustSweep(t, c, "after the grace time", monotonic(), want)
				mustSweep(t, c, "shortly before the end", monotonic()+cutOffStay-time.Minute, 0)
				mustSweep(t, c, "at the end", monotonic()+cutOffStay, 2-want)
			})
		}
	}
}

// TestNativeGoesWithItsGround: a mapping that leads to itself does nothing for a flow
// that conntrack has forgotten.
func TestNativeGoesWithItsGround(t *testing.T) {
	_, c := newCollectorLab(t)
	key := newFlowKey(1, unix.IPPROTO_UDP, netip.MustParseAddrPort("198.51.100.2:4000"), netip.MustParseAddrPort("198.51.100.9:7777"))
	native := publicEnd{Port: key.SelfPort, Pin: 1, Flags: mappingNative}
	native.Addr.Word = key.Self.Word
	must(t, c.d.maps.ByPublic.Put(key, localEnd{Addr: key.Self, Port: key.SelfPort, Pin: 1, Flags: mappingNative}))
	must(t, c.d.maps.ByLocal.Put(key, native))
	must(t, netlink.LinkSetDown(up(t, "wan0")))
	must(t, c.reconcile(context.Background()))
	mustSweep(t, c, "after the grace time", monotonic(), 1)
	if has(t, c.d.maps.ByLocal, key) {
		t.Error("the native mapping stays")
	}
}

// newCollectorLab has a UDP flow and a TCP connection that are pinned and silent.
func newCollectorLab(t *testing.T) (*lab, *collector) {
	t.Helper()
	l := newLab(t)
	must(t, os.WriteFile(eventsPath, []byte("1"), 0o644))
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	l.plan(t, d, true)
	l.serve(t)
	mustAsk(t, l.dial(t, "datagrams", "udp4", "192.168.1.10:4000"), l.dial(t, "connection", "tcp4", "192.168.1.10:4000"))
	age(t, d)
	c, err := newCollector(d, (&logBuffer{}).logger())
	must(t, err)
	t.Cleanup(c.close)
	must(t, c.refresh())
	return l, c
}

// forgotten listens, and returns what waits until conntrack has removed both flows,
// and tells the collector if it is to hear of it.
func (l *lab) forgotten(t *testing.T, c *collector, tell bool) (wait func()) {
	t.Helper()
	listener, err := conntrack.Listen(conntrack.Destroys)
	must(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return func() {
		t.Helper()
		enough := errors.New("both")
		n := 0
		err := listener.Receive(ctx, func(event conntrack.Event) error {
			if tell {
				if err := c.destroyed(event.Flow); err != nil {
					return err
				}
			}
			if n++; n == 2 {
				return enough
			}
			return nil
		})
		must(t, listener.Close())
		if !errors.Is(err, enough) {
			t.Fatalf("conntrack removed %d flows, want 2: %v", n, err)
		}
	}
}

func mustSweep(t *testing.T, c *collector, when string, ripe time.Duration, want int) {
	t.Helper()
	if n, err := c.sweep(context.Background(), ripe); err != nil || n != want {
		t.Errorf("%s: swept %d mappings, %v, want %d", when, n, err, want)
	}
}

// TestWasCutOff: what the kernel removes before its time may go on; not what ran
// out, or a connection whose end was seen.
func TestWasCutOff(t *testing.T) {
	tcp := func(state conntrack.TCPState) *conntrack.TCP { return &conntrack.TCP{State: state} }
	for name, test := range map[string]struct {
		flow conntrack.Flow
		want bool
	}{
		"datagrams":             {conntrack.Flow{Timeout: 29 * time.Second}, true},
		"datagrams that ceased": {conntrack.Flow{}, false},
		"connection":            {conntrack.Flow{Timeout: time.Hour, TCP: tcp(conntrack.TCPEstablished)}, true},
		"connection that ended": {conntrack.Flow{Timeout: time.Minute, TCP: tcp(conntrack.TCPTimeWait)}, false},
	} {
		if got := wasCutOff(&test.flow); got != test.want {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}
