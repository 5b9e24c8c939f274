// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"net/netip"
	"time"
)

// HoldResets keeps this router from answering TCP segments to the VIPs by RST
// when they belong to no connection it knows: they are dropped and counted for
// so long, then the kernel ends it by itself. Called again, the time begins
// anew, for these VIPs alone, and the count goes on.
func HoldResets(vips []netip.Addr, d time.Duration) error { return errors.ErrUnsupported }

// EndHoldResets ends it at once, and the count.
func EndHoldResets() error { return errors.ErrUnsupported }

// ResetsHeld is how many segments were dropped.
func ResetsHeld() (uint64, error) { return 0, errors.ErrUnsupported }
