// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vippin/test/lab"
)

// vipWatch waits for addresses on a router and stamps the time when the kernel
// tells of the last one, on a thread that goes before everything else: the
// machine is busy just then.
type vipWatch struct {
	fd     int
	wanted map[netip.Addr]bool
	result chan vipsHeld
}

type vipsHeld struct {
	at  time.Time
	err error
}

// watchVIPs begins to watch; await must follow.
func watchVIPs(r *lab.Router, vips ...netip.Addr) (*vipWatch, error) {
	w := &vipWatch{wanted: make(map[netip.Addr]bool), result: make(chan vipsHeld, 1)}
	for _, vip := range vips {
		w.wanted[vip] = true
	}
	err := r.Do(func() (err error) {
		if w.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE); err != nil {
			return err
		}
		return errors.Join(
			unix.Bind(w.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR}),
			unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}))
	})
	if err != nil {
		return nil, fmt.Errorf("watch the addresses of %s: %w", r.Name, err)
	}
	go w.run(time.Now().Add(masterPatience))
	return w, nil
}

const masterPatience = 15 * time.Second

func (w *vipWatch) run(deadline time.Time) {
	defer unix.Close(w.fd)
	runtime.LockOSThread() // never unlocked: the thread ends with its priority
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 10}, 0)
	buffer := make([]byte, 16<<10)
	for {
		n, _, err := unix.Recvfrom(w.fd, buffer, 0)
		now := time.Now()
		switch {
		case now.After(deadline):
			w.result <- vipsHeld{err: fmt.Errorf("wait for MASTER: not after %s, %d VIPs are missing", masterPatience, len(w.wanted))}
			return
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			w.result <- vipsHeld{err: fmt.Errorf("wait for MASTER: %w", err)}
			return
		}
		for _, addr := range newAddresses(buffer[:n]) {
			delete(w.wanted, addr)
		}
		if len(w.wanted) == 0 {
			w.result <- vipsHeld{at: now}
			return
		}
	}
}

// await returns when the last VIP was there.
func (w *vipWatch) await() (time.Time, error) {
	held := <-w.result
	return held.at, held.err
}

// newAddresses reads RTM_NEWADDR messages (rtnetlink(7)): IFA_LOCAL, or
// IFA_ADDRESS where there is none.
func newAddresses(data []byte) (addrs []netip.Addr) {
	messages, err := syscall.ParseNetlinkMessage(data)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		if m.Header.Type != unix.RTM_NEWADDR {
			continue
		}
		attributes, err := syscall.ParseNetlinkRouteAttr(&m)
		if err != nil {
			continue
		}
		for _, a := range attributes {
			if a.Attr.Type == unix.IFA_LOCAL || a.Attr.Type == unix.IFA_ADDRESS {
				if addr, ok := netip.AddrFromSlice(a.Value); ok {
					addrs = append(addrs, addr)
				}
			}
		}
	}
	return addrs
}
