// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// unansweredFor is how long the kernel waits for acknowledgements, and for a
// window of zero to open, before it gives a connection up.
const unansweredFor = 3 * time.Second

// tuneTCP lets a peer that has died be noticed while nothing is sent, too.
func tuneTCP(conn *net.TCPConn) error {
	err := conn.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 3})
	if err != nil {
		return fmt.Errorf("switch keepalive on: %w", err)
	}
	if err := conn.SetNoDelay(true); err != nil {
		return fmt.Errorf("set TCP_NODELAY: %w", err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("set TCP_USER_TIMEOUT: %w", err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unansweredFor.Milliseconds()))
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return fmt.Errorf("set TCP_USER_TIMEOUT: %w", err)
	}
	return nil
}

// dropTCP closes with a reset: no TIME_WAIT stays.
func dropTCP(conn *net.TCPConn) {
	_ = conn.SetLinger(0)
	conn.Close()
}

func addrOf(addr net.Addr) netip.AddrPort {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	at := tcp.AddrPort()
	return netip.AddrPortFrom(plainAddr(at.Addr()), at.Port())
}

// plainAddr makes addresses of configuration and kernel comparable.
func plainAddr(addr netip.Addr) netip.Addr { return addr.Unmap().WithZone("") }

// countedConn counts octets.
type countedConn struct {
	net.Conn
	in, out atomic.Uint64
}

func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.in.Add(uint64(n))
	return n, err
}

func (c *countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.out.Add(uint64(n))
	return n, err
}
