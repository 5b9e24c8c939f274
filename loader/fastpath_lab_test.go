// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// newForwardingLab is a lab whose cables take redirected frames, and whose hosts write
// their checksums themselves: a redirect loses what hardware is to do.
func newForwardingLab(t *testing.T) *lab {
	t.Helper()
	l := newLab(t)
	for _, set := range []struct{ command, data uint32 }{{unix.ETHTOOL_SGRO, 1}, {unix.ETHTOOL_STXCSUM, 0}} {
		for _, ns := range []netns.NsHandle{l.lan, l.wan} {
			err := inNamespace(ns, func() error {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return err
				}
				defer func() { _ = unix.Close(fd) }()
				return ethtool(fd, "peer", unsafe.Pointer(&set))
			})
			if err != nil {
				t.Fatalf("set up the cables: %v", err)
			}
		}
	}
	l.serve(t)
	return l
}

// open loads dataplane and fast path on lan0 and wan0, with a daemon that lives
// for an hour.
func (l *lab) open(t *testing.T, dir string) (*Dataplane, *Fastpath) {
	t.Helper()
	d := mustLoad(t, Options{BPFFS: dir})
	if err := errors.Join(d.SetSettings(Settings{Lease: time.Hour}), d.Heartbeat(Monotonic())); err != nil {
		t.Fatal(err)
	}
	l.plan(t, d, true)
	f := mustFastpath(t, d, FastpathOptions{})
	for _, device := range mustAttach(t, f, "lan0", "wan0") {
		if device.Mode != "native" {
			t.Fatalf("device %+v", device)
		}
	}
	if err := f.SetOpen(true); err != nil {
		t.Fatal(err)
	}
	return d, f
}

func packetsOf(t *testing.T, f *Fastpath) map[string]uint64 {
	t.Helper()
	sums, err := sumCounters(f.maps.Counters, exitNames[:])
	if err != nil {
		t.Fatal(err)
	}
	return sums
}

// stream sends datagrams of one flow until stop, which tells how many.
func (l *lab) stream(t *testing.T, c *client) (stop func() int) {
	t.Helper()
	var sender sync.WaitGroup
	done := make(chan struct{})
	sent := 0
	sender.Go(func() {
		line := fmt.Appendf(nil, "%-*s", lineLen, c.name)
		pace := time.NewTicker(500 * time.Microsecond)
		defer pace.Stop()
		for {
			select {
			case <-done:
				return
			case <-pace.C:
			}
			if _, err := c.conn.Write(line); err != nil {
				t.Errorf("send: %v", err)
				return
			}
			sent++
		}
	})
	return func() int {
		close(done)
		sender.Wait()
		return sent
	}
}

func (l *lab) arrived(name string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, count := range l.seen[name] {
		n += count
	}
	return n
}

// TestFastpathTraffic: a pinned flow takes the fast path with the VIP as its
// source. Nothing of it is lost while devices leave the fast path and come back,
// and while the daemon is replaced.
func TestFastpathTraffic(t *testing.T) {
	l := newForwardingLab(t)
	dir := testBPFFS(t)
	d, f := l.open(t, dir)
	c := l.dial(t, "flow", "udp4", "192.168.1.10:43000")
	await(t, "the flow takes the fast path", func() bool {
		mustAsk(t, c)
		return packetsOf(t, f)["forwarded"] > 10
	})
	if source := l.source(t, "flow"); source.Addr().String() != vip {
		t.Errorf("the flow comes from %v, want %s", source, vip)
	}
	before := l.arrived("flow")
	stop := l.stream(t, c)
	for range 5 {
		forwarded := packetsOf(t, f)["forwarded"]
		await(t, "the fast path forwards", func() bool { return packetsOf(t, f)["forwarded"] > forwarded+20 })
		mustAttach(t, f, "lan0")
		stale := packetsOf(t, f)["stale"]
		await(t, "packets take the stack", func() bool { return packetsOf(t, f)["stale"] > stale+20 })
		mustAttach(t, f, "wan0", "lan0")
	}
	for range 2 {
		if err := errors.Join(f.Close(), d.Close()); err != nil {
			t.Fatal(err)
		}
		d, f = l.open(t, dir)
		forwarded := packetsOf(t, f)["forwarded"]
		await(t, "the fast path forwards again", func() bool { return packetsOf(t, f)["forwarded"] > forwarded+20 })
	}
	sent := stop()
	await(t, fmt.Sprintf("all of %d datagrams arrive", sent), func() bool { return l.arrived("flow") >= before+sent })
	l.source(t, "flow")
}
