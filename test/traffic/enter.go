// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/vishvananda/netns"
)

// Enter calls create on an operating system thread that is inside some network
// namespace, and returns its error. Goroutines that create starts are not in
// the namespace; sockets that create opens stay in it for ever.
type Enter func(create func() error) error

// Here stays in the namespace of the calling thread.
func Here(create func() error) error { return create() }

// Named enters a namespace below /run/netns, as "ip netns" makes them.
func Named(name string) Enter {
	return func(create func() error) error {
		target, err := netns.GetFromName(name)
		if err != nil {
			return fmt.Errorf("open network namespace %s (make it first): %w", name, err)
		}
		defer target.Close()
		return Inside(target)(create)
	}
}

// Inside enters the namespace of an open handle, which stays the caller's.
func Inside(target netns.NsHandle) Enter {
	return func(create func() error) (err error) {
		runtime.LockOSThread()
		origin, err := netns.Get()
		if err != nil {
			runtime.UnlockOSThread()
			return fmt.Errorf("open this thread's network namespace: %w", err)
		}
		defer origin.Close()
		if err := netns.Set(target); err != nil {
			runtime.UnlockOSThread()
			return fmt.Errorf("enter network namespace %s: %w", target, err)
		}
		defer func() {
			if back := netns.Set(origin); back != nil {
				// The thread is lost: it stays locked and dies with its goroutine.
				err = errors.Join(err, fmt.Errorf("leave network namespace %s: %w", target, back))
				return
			}
			runtime.UnlockOSThread()
		}()
		return create()
	}
}
