// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"vippin/bpf"
)

// tickClock reads the kernel's tick (jiffies), which the entries' times are in and
// which only a program can read: this one returns the lower half.
type tickClock struct {
	program *ebpf.Program
	length  time.Duration
}

func newTickClock() (*tickClock, error) {
	program, err := ebpf.NewProgram(bpf.Tick())
	if err != nil {
		return nil, fmt.Errorf("load the program that reads the kernel's tick: %w", err)
	}
	var length unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &length); err != nil {
		panic(fmt.Sprintf("read the length of a tick: %v", err)) // cannot fail with these arguments
	}
	return &tickClock{program, time.Duration(length.Nano())}, nil
}

// now is the lower half of jiffies64.
func (c *tickClock) now() (uint32, error) {
	tick, _, err := c.program.Test(make([]byte, 14)) // the shortest frame that the kernel takes
	if err != nil {
		return 0, fmt.Errorf("read the kernel's tick: %w", err)
	}
	return tick, nil
}

// Close does nothing for nil.
func (c *tickClock) Close() error {
	if c == nil {
		return nil
	}
	return c.program.Close()
}

// fastLastTick is the whole tick of an entry's last packet, whose lower 16 bits it
// has. The packet came while the entry was valid, or taught it: before until, and not
// after now. What another flow left there, or a tick that ran round, makes it too
// young by as long as an entry is valid at most.
func fastLastTick(lower uint16, until, now uint32) uint32 {
	last := until
	if int32(now-last) < 0 {
		last = now
	}
	return last - uint32(uint16(last)-lower)
}
