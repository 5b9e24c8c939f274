// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// offload is one of a device's features and how ethtool(8) -K reaches it.
type offload struct {
	name     string
	get, set uint32 // of the ioctl
	bit      uint32 // of the value
}

var (
	ethtoolGRO    = offload{"gro", unix.ETHTOOL_GGRO, unix.ETHTOOL_SGRO, 1}
	ethtoolTxVLAN = offload{"txvlan", unix.ETHTOOL_GFLAGS, unix.ETHTOOL_SFLAGS, 1 << 7} // ETH_FLAG_TXVLAN
)

// switchOffload is "ethtool -K NAME OFFLOAD on", or off, in the namespace of the
// calling thread.
func switchOffload(name string, o offload, on bool) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket for ethtool: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	value, err := ethtoolValue(fd, name, o.get, 0)
	if err == nil {
		value &^= o.bit
		if on {
			value |= o.bit
		}
		_, err = ethtoolValue(fd, name, o.set, value)
	}
	if err != nil {
		return fmt.Errorf("switch %s of %s: %w", o.name, name, err)
	}
	return nil
}

func ethtoolValue(fd int, name string, command, data uint32) (uint32, error) {
	value := struct{ command, data uint32 }{command, data} // struct ethtool_value
	request := struct {                                    // struct ifreq
		name  [unix.IFNAMSIZ]byte
		value unsafe.Pointer
		rest  [16]byte
	}{value: unsafe.Pointer(&value)}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		return 0, errno
	}
	return value.data, nil
}
