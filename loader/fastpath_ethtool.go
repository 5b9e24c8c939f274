// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Of include/uapi/linux/ethtool.h.
const (
	stringsFeatures = 4  // ETH_SS_FEATURES
	stringLen       = 32 // ETH_GSTRING_LEN
	featuresMax     = 256
)

// The features that take a tag off before XDP sees the packet.
const (
	stripsCustomer = "rx-vlan-hw-parse"      // 802.1Q
	stripsService  = "rx-vlan-stag-hw-parse" // 802.1ad
)

// activeFeatures lists what "ethtool -k" shows as on. It is of the network
// namespace of the calling thread.
func activeFeatures(name string) (map[string]bool, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open a socket for ethtool: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	names := struct {
		command, set, count uint32
		text                [featuresMax][stringLen]byte
	}{command: unix.ETHTOOL_GSTRINGS, set: stringsFeatures}
	count, err := countFeatures(fd, name)
	if err == nil {
		err = ethtool(fd, name, unsafe.Pointer(&names))
	}
	if err != nil {
		return nil, fmt.Errorf("list features of %s: %w", name, err)
	}
	features := struct { // struct ethtool_gfeatures
		command, size uint32
		blocks        [featuresMax / 32]struct{ available, requested, active, never uint32 }
	}{command: unix.ETHTOOL_GFEATURES, size: (count + 31) / 32}
	if err := ethtool(fd, name, unsafe.Pointer(&features)); err != nil {
		return nil, fmt.Errorf("read features of %s: %w", name, err)
	}
	active := make(map[string]bool)
	for i := range count {
		if features.blocks[i/32].active>>(i%32)&1 != 0 {
			text, _, _ := bytes.Cut(names.text[i][:], []byte{0})
			active[string(text)] = true
		}
	}
	return active, nil
}

func countFeatures(fd int, name string) (uint32, error) {
	info := struct { // struct ethtool_sset_info
		command, reserved uint32
		sets              uint64
		count             uint32
	}{command: unix.ETHTOOL_GSSET_INFO, sets: 1 << stringsFeatures}
	if err := ethtool(fd, name, unsafe.Pointer(&info)); err != nil {
		return 0, err
	}
	if info.count > featuresMax {
		return 0, fmt.Errorf("there are %d of them, more than %d", info.count, featuresMax)
	}
	return info.count, nil
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

// Of include/uapi/linux/netdev.h, Linux 6.3.
const (
	netdevFamily  = "netdev"
	netdevGet     = 1 // NETDEV_CMD_DEV_GET
	netdevVersion = 1
	netdevIfindex = 1      // NETDEV_A_DEV_IFINDEX, u32
	netdevXDP     = 3      // NETDEV_A_DEV_XDP_FEATURES, u64
	xdpSends      = 1 << 2 // NETDEV_XDP_ACT_NDO_XMIT
	xdpSendsParts = 1 << 6 // NETDEV_XDP_ACT_NDO_XMIT_SG
)

// xdpFeatures tells what a driver can do, XDP attached or not. known is false
// where the kernel does not say, before 6.3.
func xdpFeatures(ifindex int) (features uint64, known bool, err error) {
	family, err := netlink.GenlFamilyGet(netdevFamily)
	if errors.Is(err, unix.ENOENT) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("find the netlink family %s: %w", netdevFamily, err)
	}
	request := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
	// The library sends four octets of a header that it declares as two.
	header := struct {
		nl.Genlmsg
		reserved uint16
	}{Genlmsg: nl.Genlmsg{Command: netdevGet, Version: netdevVersion}}
	request.AddData(&header.Genlmsg)
	request.AddData(nl.NewRtAttr(netdevIfindex, binary.NativeEndian.AppendUint32(nil, uint32(ifindex))))
	messages, err := request.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return 0, false, fmt.Errorf("ask for the XDP features of interface %d: %w", ifindex, err)
	}
	for _, message := range messages {
		attrs, err := nl.ParseRouteAttr(message[nl.SizeofGenlmsg:])
		if err != nil {
			return 0, false, fmt.Errorf("read the XDP features of interface %d: %w", ifindex, err)
		}
		for _, attr := range attrs {
			if attr.Attr.Type == netdevXDP && len(attr.Value) == 8 {
				return binary.NativeEndian.Uint64(attr.Value), true, nil
			}
		}
	}
	return 0, false, nil
}
