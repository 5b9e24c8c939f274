// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// monotonic is the time that the programs' stamps are in, CLOCK_MONOTONIC as of
// the last tick: never later than they are.
func monotonic() time.Duration { return readClock(unix.CLOCK_MONOTONIC_COARSE) }

// Monotonic is CLOCK_MONOTONIC to the nanosecond: the coarse clock of the programs'
// stamps is up to a tick behind, which is as long as a role change may take. Go's
// own monotonic clock is the same one, and read without a system call.
func Monotonic() time.Duration { return clockBase + time.Since(clockStart) }

var (
	clockStart = time.Now()
	clockBase  = readClock(unix.CLOCK_MONOTONIC) - time.Since(clockStart)
)

func readClock(clock int32) time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(clock, &now); err != nil {
		panic(fmt.Sprintf("read the monotonic clock: %v", err)) // cannot fail with these arguments
	}
	return time.Duration(now.Nano())
}
