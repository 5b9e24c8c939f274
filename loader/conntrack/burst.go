// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"fmt"
	"unsafe"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	burstMost = 64      // datagrams taken by one system call
	eventMost = 4 << 10 // octets of an event; the kernel's are some 300
)

// burst takes many datagrams of a socket by one system call: the kernel puts one
// event into each.
type burst struct {
	headers []mmsghdr
	vectors [burstMost]unix.Iovec
	senders [burstMost]unix.RawSockaddrNetlink
	buf     []byte
}

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	header unix.Msghdr
	length uint32
}

func newBurst() *burst {
	b := &burst{headers: make([]mmsghdr, burstMost), buf: make([]byte, burstMost*eventMost)}
	for i := range b.headers {
		b.vectors[i].Base = &b.buf[i*eventMost]
		b.vectors[i].SetLen(eventMost)
		header := &b.headers[i].header
		header.Iov = &b.vectors[i]
		header.SetIovlen(1)
		header.Name = (*byte)(unsafe.Pointer(&b.senders[i]))
	}
	return b
}

// receive takes what there is, up to burstMost datagrams, and hands their messages
// to handle; lost is called for one that was larger than an event may be.
// unix.EAGAIN: there is nothing.
func (b *burst) receive(fd int, handle func(netlink.Message) error, lost func() error) error {
	n, err := b.take(fd)
	if err != nil {
		return fmt.Errorf("read from netfilter socket: %w", err)
	}
	for i := range n {
		header := &b.headers[i]
		switch {
		case b.senders[i].Pid != 0:
			continue // not the kernel
		case header.header.Flags&unix.MSG_TRUNC != 0:
			err = lost()
		default:
			err = eachMessage(b.buf[i*eventMost:i*eventMost+int(header.length)], handle)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *burst) take(fd int) (n int, err error) {
	for i := range b.headers {
		b.headers[i].header.Namelen = unix.SizeofSockaddrNetlink
	}
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.headers[0])), burstMost, 0, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}
