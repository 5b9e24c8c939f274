// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vippin/bpf"
	"vippin/policy"
)

// The programs of an interface, by the names that the kernel keeps (15 octets).
const (
	ingressProgram = "vippin_ingress"
	egressProgram  = "vippin_egress"
	fastProgram    = "vippin_fastpath"
)

const (
	costRuns   = 100_000 // in one go
	costRounds = 9       // the median counts
)

// Costs measures what the programs that are loaded on an interface take for a
// packet, by BPF_PROG_TEST_RUN. Nothing is sent and nothing is changed: packets
// belong to no flow, so that no counter moves. The fast path's program counts
// every packet; measured is another one of the same code, with tables of its own.
// What a program that does nothing takes is left out. It needs root.
func Costs(ctx context.Context, iface string) (costs []policy.ProgramCost, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var idle bpf.GeneratorObjects
	if err := bpf.LoadGeneratorObjects(&idle, nil); err != nil {
		return nil, fmt.Errorf("load programs that do nothing: %w", err)
	}
	defer func() { err = errors.Join(err, idle.Close()) }()
	l, err := netlink.LinkByName(iface)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", iface, err)
	}
	for _, hook := range []struct {
		name, program string
		attach        ebpf.AttachType
		parent        uint32
	}{
		{"ingress", ingressProgram, ebpf.AttachTCXIngress, netlink.HANDLE_MIN_INGRESS},
		{"egress", egressProgram, ebpf.AttachTCXEgress, netlink.HANDLE_MIN_EGRESS},
	} {
		program, err := findProgram(l, hook.program, hook.attach, hook.parent)
		if err != nil {
			return nil, fmt.Errorf("look at %s of %s: %w", hook.name, iface, err)
		}
		if program == nil {
			continue
		}
		cost := policy.ProgramCost{Interface: iface, Hook: hook.name, Program: hook.program}
		some, err := costsOfTC(ctx, cost, program, idle.Nothing, l.Attrs())
		if err := errors.Join(err, program.Close()); err != nil {
			return nil, fmt.Errorf("measure %s of %s: %w", hook.program, iface, err)
		}
		costs = append(costs, some...)
	}
	fast, err := costsOfXDP(ctx, l, idle.NothingXdp)
	if err != nil {
		return nil, fmt.Errorf("measure %s of %s: %w", fastProgram, iface, err)
	}
	if costs = append(costs, fast...); len(costs) == 0 {
		return nil, fmt.Errorf("measure %s: no program of vippin is on it: \"vippin pin ls\" says which interfaces it is for", iface)
	}
	return costs, nil
}

// findProgram finds a program by its name; nil: it is not there.
func findProgram(l netlink.Link, name string, attach ebpf.AttachType, parent uint32) (*ebpf.Program, error) {
	var ids []ebpf.ProgramID
	result, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: attach})
	if err == nil {
		for _, p := range result.Programs {
			ids = append(ids, p.ID)
		}
	} else if !errors.Is(err, ebpf.ErrNotSupported) && !errors.Is(err, unix.EINVAL) {
		return nil, err
	}
	filters, err := netlink.FilterList(l, parent)
	if err != nil && !errors.Is(err, unix.EINVAL) { // no clsact there
		return nil, err
	}
	for _, f := range filters {
		if filter, ok := f.(*netlink.BpfFilter); ok {
			ids = append(ids, ebpf.ProgramID(filter.Id))
		}
	}
	return openNamed(ids, name)
}

func openNamed(ids []ebpf.ProgramID, name string) (*ebpf.Program, error) {
	for _, id := range ids {
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			return nil, err
		}
		info, err := p.Info()
		if err == nil && info.Name == name {
			return p, nil
		}
		if err := errors.Join(err, p.Close()); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// costsOfTC gives the program packets that are none of any flow's: of documentation
// addresses, to the discard port. They arrive, or leave as forwarded ones.
func costsOfTC(ctx context.Context, cost policy.ProgramCost, p, idle *ebpf.Program, l *netlink.LinkAttrs) (costs []policy.ProgramCost, err error) {
	info, err := p.Info()
	if err != nil {
		return nil, err
	}
	id, _ := info.ID()
	cost.ID, cost.Runs = uint32(id), costRuns*costRounds
	for _, family := range []string{ipv4, ipv6} {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		cost.Packet = map[string]string{ipv4: "IPv4", ipv6: "IPv6"}[family] + ", of no flow"
		opts := ebpf.RunOptions{Data: strangersPacket(family, l.HardwareAddr), Context: skbContext{IngressIfindex: uint32(l.Index), Ifindex: uint32(l.Index)}}
		own, err := timeRuns(p, opts)
		if err != nil {
			return nil, err
		}
		loop, err := timeRuns(idle, opts)
		if err != nil {
			return nil, err
		}
		cost.Ns = max(own-loop, 0)
		costs = append(costs, cost)
	}
	return costs, nil
}

// timeRuns tells what one run takes of the thread's time, the call itself left out.
func timeRuns(p *ebpf.Program, opts ebpf.RunOptions) (ns float64, err error) {
	timed := func(repeat uint32) (time.Duration, error) {
		var before, after unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &before); err != nil {
			return 0, err
		}
		opts.Repeat = repeat
		if _, err := p.Run(&opts); err != nil {
			return 0, err
		}
		err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &after)
		return time.Duration(after.Nano() - before.Nano()), err
	}
	var all []float64
	for range costRounds {
		one, err := timed(1)
		if err != nil {
			return 0, err
		}
		many, err := timed(costRuns)
		if err != nil {
			return 0, err
		}
		all = append(all, float64(many-one)/(costRuns-1))
	}
	return middle(all), nil
}

// middle is the median of an odd number of values, or the upper one in the middle.
func middle(values []float64) float64 {
	return slices.Sorted(slices.Values(values))[len(values)/2]
}

// skbContext is the beginning of struct __sk_buff.
type skbContext struct {
	_              [9]uint32 // len to priority
	IngressIfindex uint32
	Ifindex        uint32
}

// strangersPacket is a UDP packet between two addresses for documentation (RFC 5737,
// RFC 3849); its checksum is wrong, and nobody looks.
func strangersPacket(family string, to net.HardwareAddr) []byte {
	frame := make([]byte, 64)
	copy(frame, to)
	var udp []byte
	if family == ipv4 {
		copy(frame[12:], []byte{0x08, 0x00, 0x45, 0, 0, 50, 0, 0, 0x40, 0, 255, unix.IPPROTO_UDP, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2})
		udp = frame[34:]
	} else {
		copy(frame[12:], []byte{0x86, 0xdd, 0x60, 0, 0, 0, 0, 10, unix.IPPROTO_UDP, 255})
		copy(frame[22:], net.ParseIP("2001:db8::1"))
		copy(frame[38:], net.ParseIP("2001:db8::2"))
		udp = frame[54:]
	}
	copy(udp, []byte{0, 9, 0, 9, 0, byte(len(udp)), 0x12, 0x34})
	return frame
}
