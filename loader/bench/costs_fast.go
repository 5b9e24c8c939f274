// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"vippin/bpf"
	"vippin/loader"
	"vippin/policy"
)

// costsOfXDP measures a copy of the fast path's program, if it is on the interface,
// or on the one below a VLAN's.
func costsOfXDP(ctx context.Context, l netlink.Link, idle *ebpf.Program) ([]policy.ProgramCost, error) {
	attrs := l.Attrs()
	for attrs.ParentIndex != 0 && l.Type() == "vlan" {
		below, err := netlink.LinkByIndex(attrs.ParentIndex)
		if err != nil {
			return nil, fmt.Errorf("find the interface below %s: %w", attrs.Name, err)
		}
		l, attrs = below, below.Attrs()
	}
	if attrs.Xdp == nil || attrs.Xdp.ProgId == 0 {
		return nil, nil
	}
	id := ebpf.ProgramID(attrs.Xdp.ProgId)
	loaded, err := openNamed([]ebpf.ProgramID{id}, fastProgram)
	if err != nil || loaded == nil {
		return nil, err
	}
	copied, err := copyFast()
	if err != nil {
		return nil, errors.Join(err, loaded.Close())
	}
	defer copied.Close()
	name := fastProgram + " (a copy of it)"
	if same, err := sameCode(loaded, copied.VippinFastpath); err != nil {
		return nil, errors.Join(err, loaded.Close())
	} else if !same {
		name = fastProgram + " (this version's, another one is loaded)"
	}
	if err := loaded.Close(); err != nil {
		return nil, err
	}
	cost := policy.ProgramCost{Interface: attrs.Name, Hook: "xdp", Program: name, ID: uint32(id)}
	var times []float64
	for range costRounds {
		_, each, err := idle.Benchmark(strangersPacket(ipv4, nil), costRuns, nil)
		if err != nil {
			return nil, fmt.Errorf("run a program that does nothing: %w", err)
		}
		times = append(times, float64(each.Nanoseconds()))
	}
	return copied.costs(ctx, cost, middle(times))
}

func sameCode(a, b *ebpf.Program) (bool, error) {
	one, err := a.Info()
	if err != nil {
		return false, err
	}
	other, err := b.Info()
	if err != nil {
		return false, err
	}
	return one.Tag == other.Tag, nil
}

// fastCopy is the fast path's program with tables of its own, on which it knows one
// flow of each family that comes in by the loopback device and goes back there.
type fastCopy struct{ bpf.FastpathObjects }

func copyFast() (*fastCopy, error) {
	spec, err := bpf.LoadFastpath()
	if err != nil {
		return nil, fmt.Errorf("read the built-in programs of the fast path: %w", err)
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	c := &fastCopy{}
	if err := spec.LoadAndAssign(&c.FastpathObjects, nil); err != nil {
		return nil, fmt.Errorf("load the fast path's program once more: %w", err)
	}
	if err := c.fill(); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

const copyDevice, copyHop, copyGeneration = 1, 1, 1

// fill opens the copy and enters a flow that is forwarded as it came, TTL aside.
func (c *fastCopy) fill() error {
	const loopback = 1
	err := errors.Join(
		c.FastState.Put(uint32(0), bpf.FastpathFastState{Generation: copyGeneration, LeaseNs: math.MaxInt64 / 2, PaceNs: uint64(time.Hour)}),
		c.Heartbeat.Put(uint32(0), uint64(loader.Monotonic())),
		c.FastDevices.Put(uint32(loopback), bpf.FastpathFastDevice{Number: copyDevice, Turns: copyDevice}),
		c.FastHops.Put(uint32(copyHop), bpf.FastpathFastHop{Mtu: 1500, Device: copyDevice, Alive: 1}),
	)
	if err != nil {
		return fmt.Errorf("fill the copy's tables: %w", err)
	}
	// The program tells its tick.
	if _, _, err := c.run(ipv4, 1); err != nil {
		return err
	}
	var state bpf.FastpathFastState
	if err := c.FastState.Lookup(uint32(0), &state); err != nil {
		return fmt.Errorf("ask the copy for its tick: %w", err)
	}
	return c.enter(uint32(state.Asked) + 1<<30)
}

func (c *fastCopy) enter(until uint32) error {
	native := binary.NativeEndian
	fate := bpf.FastpathFastFate{Hop: copyHop, Pin: 1, Generation: copyGeneration, Until: until}
	var four bpf.FastpathFast4Bucket
	frame := strangersPacket(ipv4, nil)
	fate.NewPorts = native.Uint32(frame[34:])
	four.Way[0] = bpf.FastpathFast4Entry{
		Addrs: native.Uint64(frame[26:]), NewAddrs: native.Uint64(frame[26:]), Ports: fate.NewPorts, Place: copyDevice << 24, Fate: fate,
	}
	var six bpf.FastpathFast6Bucket
	frame = strangersPacket(ipv6, nil)
	fate.NewPorts = native.Uint32(frame[54:])
	entry := bpf.FastpathFast6Entry{Ports: fate.NewPorts, Place: copyDevice << 24, Fate: fate}
	for i := range 4 {
		entry.Src.Word[i], entry.Dst.Word[i] = native.Uint32(frame[22+4*i:]), native.Uint32(frame[38+4*i:])
	}
	entry.NewSrc, entry.NewDst = entry.Src, entry.Dst
	six.Way[0] = entry
	if err := errors.Join(c.Fast4.Put(uint32(0), four), c.Fast6.Put(uint32(0), six)); err != nil {
		return fmt.Errorf("enter a flow into the copy's tables: %w", err)
	}
	return nil
}

// run gives the program a packet so often, and tells its verdict and how long it took.
func (c *fastCopy) run(family string, repeat int) (uint32, time.Duration, error) {
	verdict, each, err := c.VippinFastpath.Benchmark(strangersPacket(family, make(net.HardwareAddr, 6)), repeat, nil)
	if err != nil {
		return 0, 0, fmt.Errorf("run the copy: %w", err)
	}
	return verdict, each, nil
}

// costs measures packets of the known flow, which lives for as many hops as there
// are, and of none. The kernel's own loop takes idle.
func (c *fastCopy) costs(ctx context.Context, cost policy.ProgramCost, idle float64) (costs []policy.ProgramCost, err error) {
	const calls, hops, xdpTX, xdpPass = 12, 250, 3, 2
	for _, known := range []bool{true, false} {
		want, repeat := uint32(xdpTX), hops
		if !known {
			want, repeat = xdpPass, costRuns
			if err := errors.Join(c.Fast4.Put(uint32(0), bpf.FastpathFast4Bucket{}), c.Fast6.Put(uint32(0), bpf.FastpathFast6Bucket{})); err != nil {
				return nil, fmt.Errorf("empty the copy's tables: %w", err)
			}
		}
		for _, family := range []string{ipv4, ipv6} {
			var times []float64
			for range calls { // each waits long for the kernel
				if err := ctx.Err(); err != nil {
					return nil, err
				}
				verdict, each, err := c.run(family, repeat)
				if err != nil {
					return nil, err
				}
				if verdict != want {
					return nil, fmt.Errorf("the copy says %d, not %d, to a packet over %s", verdict, want, family)
				}
				times = append(times, float64(each.Nanoseconds()))
			}
			cost.Packet = map[string]string{ipv4: "IPv4", ipv6: "IPv6"}[family] + map[bool]string{true: ", forwarded", false: ", of no flow"}[known]
			cost.Ns, cost.Runs = max(middle(times)-idle, 0), calls*repeat
			costs = append(costs, cost)
		}
	}
	return costs, nil
}
