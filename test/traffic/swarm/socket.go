// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// bufferSize is for sockets that many flows share.
const bufferSize = 16 << 20

// sockaddr makes the system's form of an end.
func sockaddr(addr netip.Addr, port uint16) unix.Sockaddr {
	if addr.Is4() {
		return &unix.SockaddrInet4{Port: int(port), Addr: addr.As4()}
	}
	return &unix.SockaddrInet6{Port: int(port), Addr: addr.As16()}
}

// addrPort is the reverse.
func addrPort(from unix.Sockaddr) netip.AddrPort {
	switch at := from.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(at.Addr), uint16(at.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(at.Addr).Unmap(), uint16(at.Port))
	}
	return netip.AddrPort{}
}

// socket opens a non-blocking socket that is bound to a local end.
func socket(kind, protocol int, local netip.Addr, port uint16) (fd int, err error) {
	family := unix.AF_INET
	if local.Is6() {
		family = unix.AF_INET6
	}
	if fd, err = unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol); err != nil {
		return -1, fmt.Errorf("open a socket: %w", err)
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if kind == unix.SOCK_STREAM {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
	} else {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bufferSize),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, bufferSize))
	}
	if err == nil {
		err = unix.Bind(fd, sockaddr(local, port))
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("bind a socket to %s port %d: %w", local, port, err)
	}
	return fd, nil
}

// The echo messages of RFC 792 and RFC 4443.
const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
	echoHeader               = 8
)

// icmpSocket opens a raw socket that gets all ICMP of its namespace.
func icmpSocket(local netip.Addr) (int, error) {
	protocol := unix.IPPROTO_ICMP
	if local.Is6() {
		protocol = unix.IPPROTO_ICMPV6
	}
	return socket(unix.SOCK_RAW, protocol, local, 0)
}

// putEcho writes the header of an echo request before a message's data, with
// the checksum for IPv4; for IPv6 the kernel makes it.
func putEcho(message []byte, v6 bool, id, number uint16) {
	message[0] = echoRequest4
	if v6 {
		message[0] = echoRequest6
	}
	message[1], message[2], message[3] = 0, 0, 0
	binary.BigEndian.PutUint16(message[4:], id)
	binary.BigEndian.PutUint16(message[6:], number)
	if v6 {
		return
	}
	var sum uint32 // RFC 1071
	for i := 0; i < len(message); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(message[i:]))
	}
	sum = sum>>16 + sum&0xffff
	sum += sum >> 16
	binary.BigEndian.PutUint16(message[2:], ^uint16(sum))
}

// readEcho finds the record in what a raw socket got: IPv4 comes with its
// header. request says which of the two types is wanted.
func readEcho(packet []byte, v6, request bool) (id uint16, r record, ok bool) {
	wanted := [2]byte{echoReply4, echoRequest4}
	if v6 {
		wanted = [2]byte{echoReply6, echoRequest6}
	} else if len(packet) > 0 {
		packet = packet[min(len(packet), int(packet[0]&0xf)*4):]
	}
	kind := wanted[0]
	if request {
		kind = wanted[1]
	}
	if len(packet) < echoHeader+recordLen || packet[0] != kind {
		return 0, record{}, false
	}
	r, ok = parse(packet[echoHeader:])
	return binary.BigEndian.Uint16(packet[4:]), r, ok
}
