// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"vippin/loader/nfqueue"
)

// Delay holds up what comes in by an interface of a node, as a long line does.
// Kernels that have netem could do it better; ours is an NFQUEUE whose verdicts
// come later.
type Delay struct {
	queue   *nfqueue.Queue
	unrule  func() error
	cancel  context.CancelFunc
	waiting chan delayed
	ended   chan error // of both goroutines
	took    atomic.Int64
}

type delayed struct {
	id uint32
	at time.Time
}

// The queue's number in the node, and how many packets may be under way: at more
// the line is full, and they pass at once.
const (
	delayQueue = 900
	delayMost  = 16384
)

// Delay begins to hold up IPv4 and IPv6, for a time that Set changes. End it
// before the lab.
func (n *Node) Delay(ctx context.Context, ifname string, took time.Duration) (*Delay, error) {
	d := &Delay{waiting: make(chan delayed, delayMost), ended: make(chan error, 2)}
	d.Set(took)
	err := n.Do(func() (err error) {
		d.queue, err = nfqueue.Open(nfqueue.Config{
			Queue: delayQueue, MaxLen: delayMost, CopyRange: 1, FailOpen: true, GSO: true, ReadBuffer: 16 << 20,
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("delay %s of %s: %w", ifname, n.NS, err)
	}
	rule := func(ctx context.Context, what string) (err error) {
		for _, tool := range []string{"iptables", "ip6tables"} {
			_, failed := n.Run(ctx, tool, "-w", "-t", "raw", what, "PREROUTING", "-i", ifname, "-j", "NFQUEUE",
				"--queue-num", strconv.Itoa(delayQueue), "--queue-bypass")
			err = errors.Join(err, failed)
		}
		return err
	}
	d.unrule = func() error {
		ctx, cancel := context.WithTimeout(context.Background(), rulesTimeout)
		defer cancel()
		return rule(ctx, "-D")
	}
	if err := rule(ctx, "-A"); err != nil {
		return nil, errors.Join(err, d.queue.Close())
	}
	running, cancel := context.WithCancel(context.Background())
	d.cancel = cancel
	go func() {
		defer close(d.waiting)
		d.ended <- d.queue.Run(running, func(p *nfqueue.Packet) {
			d.waiting <- delayed{p.ID, time.Now().Add(time.Duration(d.took.Load()))}
		})
	}()
	go d.release()
	return d, nil
}

// Set makes the line longer or shorter, for packets to come.
func (d *Delay) Set(took time.Duration) { d.took.Store(int64(took)) }

// release lets packets go when their time has come.
func (d *Delay) release() {
	runtime.LockOSThread() // never unlocked: the thread ends with its timers' precision
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	var failed error
	for packet := range d.waiting {
		for wait := time.Until(packet.at); wait > 0; wait = time.Until(packet.at) {
			pause := unix.NsecToTimespec(int64(wait))
			_ = unix.Nanosleep(&pause, nil)
		}
		failed = errors.Join(failed, d.queue.SetVerdicts(nfqueue.Accept, packet.id))
	}
	d.ended <- failed
}

// End takes the delay away. What is under way still arrives.
func (d *Delay) End() error {
	err := d.unrule()
	d.cancel()
	return errors.Join(err, <-d.ended, <-d.ended, d.queue.Close())
}
