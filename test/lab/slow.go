// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"os"
	"strconv"
	"time"
)

// slowness is how many times slower than usual this machine is, from the environment
// variable VIPPIN_LAB_SLOWNESS: emulated ones are (package vm).
var slowness = func() time.Duration {
	n, err := strconv.Atoi(os.Getenv("VIPPIN_LAB_SLOWNESS"))
	if err != nil || n < 1 {
		return 1
	}
	return time.Duration(n)
}()

// Slowly is for how long to wait, or how often to do something, on a slow machine
// where d is right on others.
func Slowly(d time.Duration) time.Duration { return slowness * d }

// AdvertInterval is keepalived's by default.
var AdvertInterval = Slowly(100 * time.Millisecond)
