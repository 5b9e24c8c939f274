// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Features of devices, by the names that ethtool(8) -k lists.
const (
	gro            = "rx-gro"
	insertTag      = "tx-vlan-hw-insert"
	insertOuterTag = "tx-vlan-stag-hw-insert"
	parseTag       = "rx-vlan-hw-parse"
	parseOuterTag  = "rx-vlan-stag-hw-parse"
)

// Of include/uapi/linux/ethtool.h.
const (
	stringsFeatures = 4  // ETH_SS_FEATURES
	stringLen       = 32 // ETH_GSTRING_LEN
	featuresMax     = 256
)

// switchFeature is "ethtool -K NAME FEATURE on", or off, in the namespace of the
// calling thread.
func switchFeature(name, feature string, on bool) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket for ethtool: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := setFeature(fd, name, feature, on); err != nil {
		return fmt.Errorf("switch %s of %s: %w", feature, name, err)
	}
	return nil
}

func setFeature(fd int, name, feature string, on bool) error {
	info := struct { // struct ethtool_sset_info
		command, reserved uint32
		sets              uint64
		count             uint32
	}{command: unix.ETHTOOL_GSSET_INFO, sets: 1 << stringsFeatures}
	if err := ethtool(fd, name, unsafe.Pointer(&info)); err != nil {
		return err
	}
	if info.count > featuresMax {
		return fmt.Errorf("there are %d features, more than %d", info.count, featuresMax)
	}
	names := struct { // struct ethtool_gstrings
		command, set, count uint32
		text                [featuresMax][stringLen]byte
	}{command: unix.ETHTOOL_GSTRINGS, set: stringsFeatures}
	if err := ethtool(fd, name, unsafe.Pointer(&names)); err != nil {
		return err
	}
	for i := range info.count {
		if text, _, _ := bytes.Cut(names.text[i][:], []byte{0}); string(text) != feature {
			continue
		}
		set := struct { // struct ethtool_sfeatures
			command, size uint32
			blocks        [featuresMax / 32]struct{ valid, requested uint32 }
		}{command: unix.ETHTOOL_SFEATURES, size: (info.count + 31) / 32}
		set.blocks[i/32].valid = 1 << (i % 32)
		if on {
			set.blocks[i/32].requested = 1 << (i % 32)
		}
		return ethtool(fd, name, unsafe.Pointer(&set))
	}
	return errors.New("the kernel has no such feature")
}

// ethtool asks what value, which begins with a command, asks for.
func ethtool(fd int, name string, value unsafe.Pointer) error {
	request := struct { // struct ifreq
		name  [unix.IFNAMSIZ]byte
		value unsafe.Pointer
		rest  [16]byte
	}{value: value}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return errno
	}
	return nil
}
