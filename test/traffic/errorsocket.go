// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/net/icmp"
	"golang.org/x/sys/unix"
)

// SocketError is what the kernel tells a socket of an ICMP or ICMPv6 error
// about one of its packets. It comes only to the socket whose ends the quoted
// packet names, as this host sent it.
type SocketError struct {
	Errno    syscall.Errno // what ordinary calls return for it
	Type     uint8         // of the message (RFC 792, RFC 4443)
	Code     uint8
	MTU      int        // octets, of fragmentation-needed and packet-too-big
	Offender netip.Addr // who sent the error
	Local    bool       // no message: this host itself knew
}

// ErrorSocket is a UDP or an ICMP echo socket that collects the errors of its
// packets (IP_RECVERR). Its packets carry "don't fragment", and it fails with
// EMSGSIZE rather than fragment, until AllowFragments.
type ErrorSocket struct {
	fd     int
	proto  string
	family int
	closed atomic.Bool
}

// OpenErrorSocket opens one in the namespace: proto is "udp" or "icmp" (the
// echo of either family, whose identifier is the local port; it needs root's
// group in net.ipv4.ping_group_range). A local address may be left out. Without
// a valid remote the socket is not connected until Connect.
func OpenErrorSocket(in Enter, proto string, local, remote netip.AddrPort) (*ErrorSocket, error) {
	s := &ErrorSocket{proto: proto, family: unix.AF_INET6}
	if !local.Addr().IsValid() {
		local = netip.AddrPortFrom(unspecified(remote.Addr()), local.Port())
	}
	if local.Addr().Is4() {
		s.family = unix.AF_INET
	}
	err := in(func() (err error) {
		s.fd, err = unix.Socket(s.family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, s.protocol())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open a %s socket: %w", proto, err)
	}
	if err := errors.Join(s.set(), unix.Bind(s.fd, sockaddr(local))); err != nil {
		return nil, errors.Join(fmt.Errorf("bind a %s socket to %s: %w", proto, local, err), s.Close())
	}
	if remote.IsValid() {
		if err := s.Connect(remote); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

func (s *ErrorSocket) protocol() int {
	switch {
	case s.proto != "icmp":
		return unix.IPPROTO_UDP
	case s.family == unix.AF_INET:
		return unix.IPPROTO_ICMP
	}
	return unix.IPPROTO_ICMPV6
}

func (s *ErrorSocket) set() error {
	if s.family == unix.AF_INET {
		return errors.Join(
			unix.SetsockoptInt(s.fd, unix.SOL_IP, unix.IP_RECVERR, 1),
			unix.SetsockoptInt(s.fd, unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO),
		)
	}
	return errors.Join(
		unix.SetsockoptInt(s.fd, unix.SOL_IPV6, unix.IPV6_RECVERR, 1),
		unix.SetsockoptInt(s.fd, unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO),
	)
}

// Connect fixes the remote end.
func (s *ErrorSocket) Connect(remote netip.AddrPort) error {
	if err := unix.Connect(s.fd, sockaddr(remote)); err != nil {
		return fmt.Errorf("connect a %s socket to %s: %w", s.proto, remote, err)
	}
	return nil
}

// SetTTL sets the TTL or hop limit of what is sent from now on.
func (s *ErrorSocket) SetTTL(ttl int) error {
	if s.family == unix.AF_INET {
		return unix.SetsockoptInt(s.fd, unix.SOL_IP, unix.IP_TTL, ttl)
	}
	return unix.SetsockoptInt(s.fd, unix.SOL_IPV6, unix.IPV6_UNICAST_HOPS, ttl)
}

// AllowFragments has larger datagrams than the interface's MTU leave in pieces.
func (s *ErrorSocket) AllowFragments() error {
	if s.family == unix.AF_INET {
		return unix.SetsockoptInt(s.fd, unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
	}
	return unix.SetsockoptInt(s.fd, unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT)
}

// OmitChecksum has UDP datagrams leave with a checksum of zero (RFC 768: none);
// over IPv6 it does nothing.
func (s *ErrorSocket) OmitChecksum() error {
	return unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1)
}

// Send sends one datagram, or one echo request with the payload. The error of
// an earlier one, which the kernel returns here once, is left to NextError;
// only EMSGSIZE is about this one.
func (s *ErrorSocket) Send(payload []byte) error {
	if s.proto == "icmp" {
		f := icmp4
		if s.family == unix.AF_INET6 {
			f = icmp6
		}
		message := icmp.Message{Type: f.request, Body: &icmp.Echo{Data: payload}} // the kernel adds identifier and checksum
		var err error
		if payload, err = message.Marshal(nil); err != nil {
			return fmt.Errorf("make an echo request: %w", err)
		}
	}
	for {
		_, err := unix.SendmsgN(s.fd, payload, nil, nil, 0)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EPROTO):
			continue // taken off the socket
		}
		return fmt.Errorf("send %d octets of %s: %w", len(payload), s.proto, err)
	}
}

// Receive waits for a datagram (of ICMP: a message), and says from where.
func (s *ErrorSocket) Receive(ctx context.Context) (payload []byte, from netip.AddrPort, err error) {
	buffer := make([]byte, datagramMax)
	err = s.await(ctx, unix.POLLIN, "a datagram", func() error {
		n, sa, err := unix.Recvfrom(s.fd, buffer, 0)
		payload, from = buffer[:max(n, 0)], addrPort(sa)
		return err
	})
	return payload, from, err
}

// NextError waits for the next error of a packet.
func (s *ErrorSocket) NextError(ctx context.Context) (told SocketError, err error) {
	buffer, control := make([]byte, datagramMax), make([]byte, 512)
	err = s.await(ctx, 0, "an error", func() error {
		_, n, _, _, err := unix.Recvmsg(s.fd, buffer, control, unix.MSG_ERRQUEUE)
		if err != nil {
			return err
		}
		told, err = parseSocketError(control[:n])
		return err
	})
	return told, err
}

// MTU is what the kernel knows of the path, in octets of a packet.
func (s *ErrorSocket) MTU() (int, error) {
	if s.family == unix.AF_INET {
		return unix.GetsockoptInt(s.fd, unix.SOL_IP, unix.IP_MTU)
	}
	return unix.GetsockoptInt(s.fd, unix.SOL_IPV6, unix.IPV6_MTU)
}

// Close closes the socket; again, it does nothing.
func (s *ErrorSocket) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	return unix.Close(s.fd)
}

// await tries until there is something. POLLERR is always polled for.
func (s *ErrorSocket) await(ctx context.Context, events int16, what string, try func() error) error {
	for {
		err := try()
		if !errors.Is(err, unix.EAGAIN) {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("wait for %s on a %s socket: %w", what, s.proto, ctx.Err())
		}
		fds := []unix.PollFd{{Fd: int32(s.fd), Events: events}}
		if _, err := unix.Poll(fds, pollMillis); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("poll a %s socket: %w", s.proto, err)
		}
		if events != 0 && fds[0].Revents&unix.POLLERR != 0 {
			time.Sleep(time.Millisecond) // errors wait beside what is waited for
		}
	}
}

// pollMillis is how soon the end of a context is noticed.
const pollMillis = 50

// parseSocketError reads IP_RECVERR's control message: a sock_extended_err,
// then the offender's address (ip(7)).
func parseSocketError(control []byte) (told SocketError, err error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return told, fmt.Errorf("read a socket's error: %w", err)
	}
	const size = int(unsafe.Sizeof(unix.SockExtendedErr{}))
	for _, m := range messages {
		of4 := m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_RECVERR
		of6 := m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_RECVERR
		if !of4 && !of6 || len(m.Data) < size {
			continue
		}
		told = SocketError{
			Errno: syscall.Errno(binary.NativeEndian.Uint32(m.Data)),
			Local: m.Data[4] == unix.SO_EE_ORIGIN_LOCAL, Type: m.Data[5], Code: m.Data[6],
			MTU: int(binary.NativeEndian.Uint32(m.Data[8:])),
		}
		offender := m.Data[size:]
		if len(offender) >= unix.SizeofSockaddrInet4 && of4 {
			told.Offender, _ = netip.AddrFromSlice(offender[4:8])
		} else if len(offender) >= unix.SizeofSockaddrInet6 && of6 {
			told.Offender, _ = netip.AddrFromSlice(offender[8:24])
		}
		return told, nil
	}
	return told, fmt.Errorf("read a socket's error: none among %d control messages", len(messages))
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}
