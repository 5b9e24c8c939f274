// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

const strict = "  mode: strict\n"

// strictLong has an answer wait as long as the configuration allows.
const (
	strictLong   = strict + "  strict_timeout: 1s\n"
	strictLongIs = time.Second
)

// strictStatus is what a router says of sync.mode strict.
func (p *pair) strictStatus(r *lab.Router) policy.StrictStatus {
	p.t.Helper()
	status := p.status(r)
	if status.Replication == nil || status.Replication.Strict == nil {
		p.t.Fatalf("%s does not tell of strict mode: %+v", r.Name, status.Replication)
	}
	return *status.Replication.Strict
}

// awaitHolding waits until a router holds answers for its peer, or does not.
func (p *pair) awaitHolding(r *lab.Router, want bool) {
	p.t.Helper()
	p.must(lab.Await(p.ctx, fmt.Sprintf("%s holding answers: %v", r.Name, want), func() (bool, error) {
		return p.strictStatus(r).Holding == want, nil
	}))
}

// wantsAck wants what a host does to fail since its answer waits for the router's peer,
// which stands still.
func (p *pair) wantsAck(r *lab.Router, succeeds func() bool) {
	p.t.Helper()
	before, begun := p.strictStatus(r), time.Now()
	if succeeds() && time.Since(begun) < strictLongIs {
		p.t.Error("an answer passed that the peer did not acknowledge")
	}
	if after := p.strictStatus(r); after.Waiting+after.TimedOut <= before.Waiting+before.TimedOut {
		p.t.Errorf("nothing waits for a peer that stands still: %+v, it was %+v", after, before)
	}
}

// dial connects a host to the server.
func (p *pair) dial(host int, port uint16, within time.Duration) (net.Conn, error) {
	local := lab.Port(lab.HostEnds(host).V4, port)
	return traffic.Dial(p.ctx, p.Hosts[host].Do, "tcp", local, lab.Port(lab.ServerFar.V4, serverPort), within)
}

// exchange has the server answer on a connection, and returns whom it sees.
func exchange(conn net.Conn, word string) (source string, err error) {
	defer conn.SetDeadline(time.Time{})
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(conn, word); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return "", err
	}
	return strings.Fields(line)[1], nil
}

// wave is connections that are made one after the other, by many at a time.
type wave struct {
	mu    sync.Mutex
	conns map[string]net.Conn // by host and port
}

// roll makes connections from every host until ctx ends; those that fail are
// nobody's. reached is closed when there are so many.
func (p *pair) roll(ctx context.Context, each, many int, reached chan<- struct{}) *wave {
	w := &wave{conns: make(map[string]net.Conn)}
	var dialers sync.WaitGroup
	for host := range p.Hosts {
		ports := make(chan uint16)
		dialers.Go(func() {
			defer close(ports)
			for i := range each {
				select {
				case ports <- uint16(20000 + i):
				case <-ctx.Done():
					return
				}
			}
		})
		for range 16 {
			dialers.Go(func() {
				for port := range ports {
					conn, err := p.dial(host, port, 300*time.Millisecond)
					if err != nil {
						continue
					}
					w.mu.Lock()
					w.conns[fmt.Sprintf("host %d port %d", host, port)] = conn
					if len(w.conns) == many {
						close(reached)
					}
					w.mu.Unlock()
				}
			})
		}
	}
	p.t.Cleanup(func() {
		for _, conn := range w.conns {
			conn.Close()
		}
	})
	dialers.Wait()
	return w
}

// The master dies while connections are being made. Every one that its client saw
// established goes on, from the same source.
func TestStrictKeepsWhatWasEstablished(t *testing.T) {
	t.Parallel()
	p := setPair(t, "strictwave", lab.Options{Firewall: true}, strictLong)
	p.awaitHolding(p.RA, true)
	ctx, stop := context.WithCancel(p.ctx)
	defer stop()
	reached := make(chan struct{})
	crashed := make(chan error, 1)
	go func() {
		<-reached
		err := p.Crash(p.RA)
		stop()
		crashed <- err
	}()
	w := p.roll(ctx, 2000, 400, reached)
	p.must(<-crashed)
	p.awaitRole(p.RB, policy.RoleMaster)
	var mu sync.Mutex
	var broken []string
	var exchanges errgroup.Group
	exchanges.SetLimit(64)
	for name, conn := range w.conns {
		exchanges.Go(func() error {
			source, err := exchange(conn, "still-there")
			if err != nil || !strings.HasPrefix(source, vip.V4.String()+":") {
				mu.Lock()
				defer mu.Unlock()
				broken = append(broken, fmt.Sprintf("%s: %s %v", name, source, err))
			}
			return nil
		})
	}
	p.must(exchanges.Wait())
	if len(broken) > 0 {
		t.Errorf("of %d connections %d broke: %q\n%s", len(w.conns), len(broken), first(broken, 10), p.Describe())
	}
}

// An answer waits for the peer's acknowledgement, and for nothing else: not
// without a peer, not when the peer is too slow, not when the daemon is dead.
func TestStrictAnswersWait(t *testing.T) {
	t.Parallel()
	p := setPair(t, "strictwait", lab.Options{Hosts: 1}, strictLong)
	p.awaitHolding(p.RA, true)
	connects := func(port uint16, what string) net.Conn {
		t.Helper()
		conn, err := p.dial(0, port, patience)
		p.must(err)
		t.Cleanup(func() { conn.Close() })
		if source, err := exchange(conn, what); err != nil || !strings.HasPrefix(source, vip.V4.String()) {
			t.Errorf("%s: the server sees %q, %v", what, source, err)
		}
		return conn
	}
	connects(21000, "the peer is quick")
	if status := p.strictStatus(p.RA); status.TimedOut != 0 || status.Waiting != 0 {
		t.Errorf("with a quick peer: %+v", status)
	}

	p.must(p.daemons[p.RB].Signal(syscall.SIGSTOP))
	p.wantsAck(p.RA, func() bool {
		conn, err := p.dial(0, 21001, strictLongIs/2)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	p.must(p.daemons[p.RB].Signal(syscall.SIGCONT))
	connects(21002, "the peer goes on")
	if status := p.strictStatus(p.RA); status.Acked == 0 {
		t.Errorf("what waited for the peer was not let go by its word: %+v", status)
	}

	p.must(p.daemons[p.RB].Kill9())
	p.awaitHolding(p.RA, false)
	before := p.strictStatus(p.RA).Held
	connects(21003, "there is no peer")
	if after := p.strictStatus(p.RA); after.Held != before || after.Waiting != 0 {
		t.Errorf("without a peer %d answers were held, %d wait", after.Held-before, after.Waiting)
	}
	p.must(p.daemons[p.RB].Restart())
	p.awaitHolding(p.RA, true)
	connects(21004, "the peer is back")

	p.must(p.daemons[p.RA].Kill9())
	connects(21005, "the daemon is dead")
	p.must(p.daemons[p.RA].Restart())
	p.must(p.AwaitVippin(p.ctx, p.RA))
	p.awaitHolding(p.RA, true)
	connects(21006, "the daemon is back")
}
