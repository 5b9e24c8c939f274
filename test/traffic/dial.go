// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Dial opens a connected socket in the namespace. A fixed local port may be
// one whose last connection is still in TIME_WAIT, or whose last socket a child
// that is just being started holds for a moment longer.
func Dial(ctx context.Context, in Enter, proto string, local, remote netip.AddrPort, timeout time.Duration) (net.Conn, error) {
	dialer := net.Dialer{Timeout: timeout}
	dialer.SetMultipathTCP(false)
	if local.Port() != 0 || local.Addr().IsValid() {
		if !local.Addr().IsValid() {
			local = netip.AddrPortFrom(unspecified(remote.Addr()), local.Port())
		}
		switch proto {
		case "tcp":
			dialer.LocalAddr = net.TCPAddrFromAddrPort(local)
		case "udp":
			dialer.LocalAddr = net.UDPAddrFromAddrPort(local)
		}
		dialer.Control = reuseAddress
	}
	var conn net.Conn
	err := in(func() (err error) {
		conn, err = dialer.DialContext(ctx, proto, remote.String())
		return err
	})
	if err != nil {
		if conn != nil {
			conn.Close()
		}
		return nil, fmt.Errorf("open %s to %s: %w", proto, remote, err)
	}
	return conn, nil
}

func unspecified(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func reuseAddress(_, _ string, raw syscall.RawConn) error {
	var failed error
	if err := raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}); err != nil {
		return err
	}
	return failed
}

// makeRoom lets a socket keep what comes while a busy machine does not read it: some
// ten thousand small datagrams, more than net.core.rmem_max lets SO_RCVBUF have.
func makeRoom(conn syscall.Conn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	if failed := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
	}); failed != nil {
		return failed
	}
	return os.NewSyscallError("make room in a socket", err)
}
