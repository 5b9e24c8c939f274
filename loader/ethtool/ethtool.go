// SPDX-License-Identifier: Apache-2.0

// Package ethtool reads and switches the features of network devices that
// "ethtool -k" lists, by those names. Devices are those of the network namespace of
// the calling thread.
package ethtool

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of include/uapi/linux/ethtool.h.
const (
	stringsFeatures = 4  // ETH_SS_FEATURES
	stringLen       = 32 // ETH_GSTRING_LEN
	featuresMax     = 256
)

// Active lists the features that are on.
func Active(device string) (active map[string]bool, err error) {
	err = onSocket(func(fd int) error {
		names, err := featureNames(fd, device)
		if err != nil {
			return err
		}
		features := struct { // struct ethtool_gfeatures
			command, size uint32
			blocks        [featuresMax / 32]struct{ available, requested, active, never uint32 }
		}{command: unix.ETHTOOL_GFEATURES, size: blocks(names)}
		if err := ask(fd, device, unsafe.Pointer(&features)); err != nil {
			return fmt.Errorf("read features of %s: %w", device, err)
		}
		active = make(map[string]bool)
		for i, name := range names {
			if features.blocks[i/32].active>>(i%32)&1 != 0 {
				active[name] = true
			}
		}
		return nil
	})
	return active, err
}

// Switch is "ethtool -K DEVICE FEATURE on", or off.
func Switch(device, feature string, on bool) error {
	return onSocket(func(fd int) error {
		names, err := featureNames(fd, device)
		if err != nil {
			return err
		}
		i := slices.Index(names, feature)
		if i < 0 {
			return fmt.Errorf("switch %s of %s: the kernel has no such feature", feature, device)
		}
		set := struct { // struct ethtool_sfeatures
			command, size uint32
			blocks        [featuresMax / 32]struct{ valid, requested uint32 }
		}{command: unix.ETHTOOL_SFEATURES, size: blocks(names)}
		set.blocks[i/32].valid = 1 << (i % 32)
		if on {
			set.blocks[i/32].requested = 1 << (i % 32)
		}
		if err := ask(fd, device, unsafe.Pointer(&set)); err != nil {
			return fmt.Errorf("switch %s of %s: %w", feature, device, err)
		}
		return nil
	})
}

func onSocket(do func(fd int) error) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket for ethtool: %w", err)
	}
	return errors.Join(do(fd), unix.Close(fd))
}

// blocks is how many words of 32 features there are.
func blocks(names []string) uint32 { return uint32(len(names)+31) / 32 }

// featureNames lists the kernel's features, in the order of their bits.
func featureNames(fd int, device string) ([]string, error) {
	info := struct { // struct ethtool_sset_info
		command, reserved uint32
		sets              uint64
		count             uint32
	}{command: unix.ETHTOOL_GSSET_INFO, sets: 1 << stringsFeatures}
	if err := ask(fd, device, unsafe.Pointer(&info)); err != nil {
		return nil, fmt.Errorf("count features of %s: %w", device, err)
	}
	if info.count > featuresMax {
		return nil, fmt.Errorf("list features of %s: there are %d, more than %d", device, info.count, featuresMax)
	}
	list := struct { // struct ethtool_gstrings
		command, set, count uint32
		text                [featuresMax][stringLen]byte
	}{command: unix.ETHTOOL_GSTRINGS, set: stringsFeatures}
	if err := ask(fd, device, unsafe.Pointer(&list)); err != nil {
		return nil, fmt.Errorf("list features of %s: %w", device, err)
	}
	names := make([]string, info.count)
	for i := range names {
		text, _, _ := bytes.Cut(list.text[i][:], []byte{0})
		names[i] = string(text)
	}
	return names, nil
}

// ask asks what value, which begins with a command, asks for.
func ask(fd int, device string, value unsafe.Pointer) error {
	request := struct { // struct ifreq
		name  [unix.IFNAMSIZ]byte
		value unsafe.Pointer
		rest  [16]byte
	}{value: value}
	copy(request.name[:unix.IFNAMSIZ-1], device)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return errno
	}
	return nil
}
