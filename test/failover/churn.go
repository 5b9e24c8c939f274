// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"vippin/test/lab"
	"vippin/test/traffic/swarm"
)

const (
	churnPorts = 1000  // of the server
	churnRate  = 30000 // new flows a second that are asked for

	// begunTime is how long what a daemon does once at its start may take: vippin
	// compares the tables a second time after four seconds.
	begunTime = 6 * time.Second
	idleTime  = 3 * time.Second
)

// measureChurn measures what is not about survival, with new UDP flows.
func (b *bed) measureChurn(ctx context.Context, result *Result) error {
	if err := b.prepareChurn(); err != nil {
		return err
	}
	idle, err := b.idle(ctx)
	if err != nil {
		return err
	}
	before, err := b.usage()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := b.churn(ctx, result); err != nil {
		return err
	}
	after, err := b.usage()
	if err != nil {
		return err
	}
	result.IdleCPU = idle
	before.cpu += time.Duration(idle * float64(time.Since(start)))
	if b.c.Kind == bulk {
		return b.bulk(ctx, result)
	}
	account(result, before, after)
	return b.compare(ctx, result)
}

// prepareChurn has the routers keep flows for longer than the measurement, and
// starts the server.
func (b *bed) prepareChurn() (err error) {
	for _, r := range b.Routers() {
		for _, setting := range []string{"nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"} {
			if err := r.Sysctl("net/netfilter/"+setting, "600"); err != nil {
				return err
			}
		}
	}
	if b.server, err = b.startWorker(b.Server, "server"); err != nil {
		return err
	}
	if b.probes, err = b.startWorker(b.Hosts[probeHost], "churn"); err != nil {
		return err
	}
	return b.server.Tell("Serve", swarm.ServerPlan{
		Local: b.of(lab.ServerWAN), UDP: swarm.ChurnPorts(churnPorts), Mute: b.c.Way == oneWay,
	})
}

// churn makes the flows and waits until the peer has them.
func (b *bed) churn(ctx context.Context, result *Result) error {
	plan := swarm.ChurnPlan{
		Local: b.of(lab.HostEnds(probeHost)), Server: b.of(lab.ServerWAN),
		Flows: b.c.Flows, Ports: churnPorts, Rate: churnRate,
	}
	var done swarm.Churned
	if err := b.probes.Call("Swarm.Churn", plan, &done); err != nil {
		return fmt.Errorf("make %d new flows: %w", plan.Flows, err)
	}
	result.Rate = float64(done.Sent) / done.Took.Seconds()
	if err := b.awaitReplicated(ctx, done.Sent); err != nil || b.c.Kind != cost || !b.arm.external() {
		return err
	}
	return b.commit(ctx, done.Sent)
}

// idle is the share of a processor that the daemons of both routers take while
// there are no flows.
func (b *bed) idle(ctx context.Context) (float64, error) {
	if err := pause(ctx, begunTime); err != nil {
		return 0, err
	}
	before, err := b.usage()
	if err != nil {
		return 0, err
	}
	if err := pause(ctx, idleTime); err != nil {
		return 0, err
	}
	after, err := b.usage()
	return (after.cpu - before.cpu).Seconds() / idleTime.Seconds(), err
}

// commit has an external cache installed in the kernel: until then the peer could
// not go on with the flows.
func (b *bed) commit(ctx context.Context, flows int) error {
	if _, err := b.RB.Conntrackd(ctx, "-c"); err != nil {
		return err
	}
	return lab.Await(ctx, "the commit of the external cache", func() (bool, error) {
		n, err := tracked(b.RB)
		return n >= flows, err
	})
}

// usage is what the daemons of both routers have used.
type usage struct {
	cpu      time.Duration
	own, far int // resident octets, of ra's and of rb's
}

func (b *bed) usage() (u usage, err error) {
	for _, r := range b.Routers() {
		p := b.daemons[r.Name]
		cpu, err := cpuTime(p.Pid())
		if err != nil {
			return u, err
		}
		u.cpu += cpu
		resident, err := residentOctets(p.Pid())
		if err != nil {
			return u, err
		}
		if r == b.RA {
			u.own = resident
		} else {
			u.far = resident
		}
	}
	return u, nil
}

func account(result *Result, before, after usage) {
	n := float64(result.Flows)
	switch result.Kind {
	case cost:
		result.CPUSeconds = (after.cpu - before.cpu).Seconds() / n * 100_000
	case memory:
		result.FlowBytes = float64(after.far-before.far) / n
		result.OwnBytes = float64(after.own-before.own) / n
	}
}

// cpuTime is user and system time of a process and of its children that have
// ended: the 14th to 17th field of /proc/PID/stat, in hundredths of a second.
func cpuTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read the processor time of %d: %w", pid, err)
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 15 {
		return 0, fmt.Errorf("read the processor time of %d: %q", pid, text)
	}
	ticks := 0
	for _, field := range fields[11:15] {
		n, err := strconv.Atoi(field)
		if err != nil {
			return 0, fmt.Errorf("read the processor time of %d: %w", pid, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

func residentOctets(pid int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("read the memory of %d: %w", pid, err)
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "VmRSS:" {
			kib, err := strconv.Atoi(fields[1])
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("read the memory of %d: no VmRSS", pid)
}

// bulk restarts rb's daemon with nothing in the kernel, and times until it has
// every flow again.
func (b *bed) bulk(ctx context.Context, result *Result) error {
	born, err := b.born(ctx)
	if err != nil {
		return err
	}
	p := b.daemons[b.RB.Name]
	if err := p.Kill9(); err != nil {
		return err
	}
	if err := b.PowerOn(ctx, b.RB); err != nil {
		return err
	}
	start := time.Now()
	if err := p.Restart(); err != nil {
		return err
	}
	if b.arm.conntrackd != nil { // as its script does when the router becomes BACKUP
		if err := lab.Await(ctx, "conntrackd to ask for everything", func() (bool, error) {
			_, err := b.RB.Conntrackd(ctx, "-n")
			return err == nil, nil
		}); err != nil {
			return err
		}
	}
	for have := 0; have < len(born); {
		if time.Since(start) > replicationPatience {
			b.notes = append(b.notes, fmt.Sprintf("%v: %d of %d after %s", errBehind, have, len(born), replicationPatience))
			break
		}
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return err
		}
		if have, err = b.holds(ctx, b.RB); err != nil {
			return err
		}
	}
	result.TookMs = ms(time.Since(start))
	return b.compare(ctx, result)
}
