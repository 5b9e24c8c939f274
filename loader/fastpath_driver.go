// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The features that take a tag off before XDP sees the packet.
const (
	stripsCustomer = "rx-vlan-hw-parse"      // 802.1Q
	stripsService  = "rx-vlan-stag-hw-parse" // 802.1ad
)

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
