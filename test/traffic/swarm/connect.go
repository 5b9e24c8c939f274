// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// ConnectPlan is TCP connections to the server's TCPPort, one after the other,
// that end as soon as they are made.
type ConnectPlan struct {
	Local, Server netip.Addr
	Count         int
	Rest          time.Duration // between them
}

// connectPatience is how long a connection may take; then it has failed.
const connectPatience = 5 * time.Second

// Connected is how long each took until the client had it; 0 = it failed.
type Connected []time.Duration

// connect makes the connections. It waits in the kernel, not in an epoll: what is
// measured is some microseconds.
func connect(plan ConnectPlan) (Connected, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	took := make(Connected, plan.Count)
	for i := range took {
		var err error
		if took[i], err = connectOnce(plan); err != nil {
			return took, err
		}
		if plan.Rest > 0 {
			rest := unix.NsecToTimespec(int64(plan.Rest))
			_ = unix.Nanosleep(&rest, nil)
		}
	}
	return took, nil
}

func connectOnce(plan ConnectPlan) (time.Duration, error) {
	family := unix.AF_INET
	if plan.Local.Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(fd)
	patience := unix.NsecToTimeval(int64(connectPatience))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience); err != nil {
		return 0, fmt.Errorf("limit a connection's time: %w", err)
	}
	// It ends by a RST: nothing is left of it.
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return 0, fmt.Errorf("have a connection end at once: %w", err)
	}
	if err := unix.Bind(fd, sockaddr(plan.Local, 0)); err != nil {
		return 0, fmt.Errorf("bind a socket to %s: %w", plan.Local, err)
	}
	start := time.Now()
	if unix.Connect(fd, sockaddr(plan.Server, TCPPort)) != nil {
		return 0, nil
	}
	return time.Since(start), nil
}
