// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ProbePlan is some UDP flows that ask often, to time an outage.
type ProbePlan struct {
	Local, Server netip.Addr
	Count         int
	Interval      time.Duration // of each; they take turns
}

// ProbeLog is when each probe's answers arrived, by the kernel's clock: only
// those to requests that reached the server from the probe's first source.
type ProbeLog [][]time.Time

// Outage is what one probe missed.
type Outage struct {
	Gap  time.Duration // the longest time between two answers
	Back time.Time     // when it was answered by the new master; zero: without a gap
}

// The gap in which a takeover falls ends not long before the stamp that it got
// (IPv6: the kernel tells of addresses late), and does not begin much later.
const (
	endsBefore  = 10 * time.Millisecond
	beginsAfter = 5 * time.Millisecond
)

// Outages finds each probe's longest gap from a fault to the takeover. Left out
// are the probes that were not answered in the last half second before the end.
func (log ProbeLog) Outages(fault, takeover, end time.Time) (alive []Outage) {
	for _, at := range log {
		if len(at) == 0 || at[len(at)-1].Before(end.Add(-500*time.Millisecond)) {
			continue
		}
		var longest Outage
		var around time.Duration // the gap in which the takeover falls
		for i := 1; i < len(at); i++ {
			gap := at[i].Sub(at[i-1])
			if at[i].Before(fault) || at[i-1].After(takeover.Add(beginsAfter)) {
				continue
			}
			longest.Gap = max(longest.Gap, gap)
			if gap > around && at[i].After(takeover.Add(-endsBefore)) {
				around, longest.Back = gap, at[i]
			}
		}
		alive = append(alive, longest)
	}
	return alive
}

// probes is a running ProbePlan: a thread that sends, one that receives.
type probes struct {
	plan  ProbePlan
	fds   []int
	poll  []unix.PollFd
	stop  chan struct{}
	tasks sync.WaitGroup

	mu     sync.Mutex
	first  []netip.AddrPort // source at the first answer
	log    ProbeLog
	buffer [2048]byte
}

func startProbes(plan ProbePlan) (*probes, error) {
	p := &probes{plan: plan, stop: make(chan struct{}), first: make([]netip.AddrPort, plan.Count), log: make(ProbeLog, plan.Count)}
	for i := range plan.Count {
		fd, err := socket(unix.SOCK_DGRAM, 0, plan.Local, uint16(firstPort+i))
		if err == nil {
			p.fds = append(p.fds, fd)
			p.poll = append(p.poll, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
		}
		if err != nil {
			for _, fd := range p.fds {
				unix.Close(fd)
			}
			return nil, fmt.Errorf("open probe %d: %w", i, err)
		}
	}
	// The probes are the clock: they go before the crowd they run beside.
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, -15)
	p.tasks.Go(p.send)
	p.tasks.Go(p.receive)
	return p, nil
}

func (p *probes) send() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	to := sockaddr(p.plan.Server, ProbePort)
	step := p.plan.Interval / time.Duration(len(p.fds))
	message := make([]byte, recordLen)
	next := time.Now()
	for n := 0; ; n++ {
		select {
		case <-p.stop:
			return
		default:
		}
		record{proto: UDP, id: uint32(n%len(p.fds)) | decoyID, number: uint32(n)}.put(message)
		_ = unix.Sendto(p.fds[n%len(p.fds)], message, 0, to)
		if next = next.Add(step); time.Until(next) < -p.plan.Interval {
			next = time.Now() // the machine was busy: no bursts
		}
		if wait := time.Until(next); wait > 0 {
			pause := unix.NsecToTimespec(int64(wait))
			_ = unix.Nanosleep(&pause, nil)
		}
	}
}

func (p *probes) receive() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for {
		select {
		case <-p.stop:
			return
		default:
		}
		if n, err := unix.Poll(p.poll, 50); err != nil || n == 0 {
			continue
		}
		p.mu.Lock()
		for i := range p.poll {
			if p.poll[i].Revents != 0 {
				p.read(i)
			}
		}
		p.mu.Unlock()
	}
}

func (p *probes) read(i int) {
	var control [128]byte
	for {
		n, oobn, _, _, err := unix.Recvmsg(p.fds[i], p.buffer[:], control[:], unix.MSG_DONTWAIT)
		if err != nil {
			return
		}
		r, ok := parse(p.buffer[:n])
		if !ok || int(r.id&^decoyID) != i || !r.source.IsValid() {
			continue
		}
		if !p.first[i].IsValid() {
			p.first[i] = r.source
		}
		if r.source == p.first[i] {
			p.log[i] = append(p.log[i], timestamp(control[:oobn]))
		}
	}
}

// timestamp reads SCM_TIMESTAMPNS; without one it is now.
func timestamp(control []byte) time.Time {
	messages, err := unix.ParseSocketControlMessage(control)
	if err == nil {
		for _, m := range messages {
			if m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16 {
				return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
			}
		}
	}
	return time.Now()
}

func (p *probes) replies(since time.Time) ProbeLog {
	p.mu.Lock()
	defer p.mu.Unlock()
	log := make(ProbeLog, len(p.log))
	for i, at := range p.log {
		from, _ := slices.BinarySearchFunc(at, since, time.Time.Compare)
		log[i] = slices.Clone(at[from:])
	}
	return log
}

func (p *probes) close() {
	close(p.stop)
	p.tasks.Wait()
	for _, fd := range p.fds {
		unix.Close(fd)
	}
}
