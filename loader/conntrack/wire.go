// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"encoding/binary"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Message types of the subsystem NFNL_SUBSYS_CTNETLINK, enum cntl_msg_types.
const (
	subsystem   = 1 << 8
	msgNew      = subsystem
	msgGet      = subsystem | 1
	msgDelete   = subsystem | 2
	msgGetStats = subsystem | 5
)

// And of NFNL_SUBSYS_CTNETLINK_EXP, enum ctnl_exp_msg_types.
const (
	expectSubsystem = 2 << 8
	msgExpectNew    = expectSubsystem
	msgExpectGet    = expectSubsystem | 1
)

// enum ctattr_type.
const (
	ctaTupleOrig     = 1
	ctaTupleReply    = 2
	ctaStatus        = 3
	ctaProtoInfo     = 4
	ctaHelp          = 5
	ctaNATSrc        = 6
	ctaTimeout       = 7
	ctaMark          = 8
	ctaCountersOrig  = 9
	ctaCountersReply = 10
	ctaID            = 12
	ctaNATDst        = 13
	ctaTupleMaster   = 14
	ctaSeqAdjOrig    = 15
	ctaSeqAdjReply   = 16
	ctaZone          = 18
	ctaTimestamp     = 20
	ctaMarkMask      = 21
	ctaStatusMask    = 26
)

// enums ctattr_tuple, ctattr_ip and ctattr_l4proto.
const (
	ctaTupleIP    = 1
	ctaTupleProto = 2
	ctaTupleZone  = 3

	ctaIPv4Src = 1
	ctaIPv4Dst = 2
	ctaIPv6Src = 3
	ctaIPv6Dst = 4

	ctaProtoNum        = 1
	ctaProtoSrcPort    = 2
	ctaProtoDstPort    = 3
	ctaProtoICMPID     = 4
	ctaProtoICMPType   = 5
	ctaProtoICMPCode   = 6
	ctaProtoICMPv6ID   = 7
	ctaProtoICMPv6Type = 8
	ctaProtoICMPv6Code = 9
)

// enums ctattr_protoinfo, ctattr_protoinfo_tcp, ctattr_protoinfo_sctp,
// ctattr_nat, ctattr_protonat, ctattr_counters, ctattr_tstamp, ctattr_help and
// ctattr_seqadj.
const (
	ctaProtoInfoTCP  = 1
	ctaProtoInfoSCTP = 3

	ctaTCPState       = 1
	ctaTCPScaleOrig   = 2
	ctaTCPScaleReply  = 3
	ctaTCPFlagsOrig   = 4
	ctaTCPFlagsReply  = 5
	ctaSCTPState      = 1
	ctaSCTPTagOrig    = 2
	ctaSCTPTagReply   = 3
	ctaNATv4Min       = 1
	ctaNATv4Max       = 2
	ctaNATProto       = 3
	ctaNATv6Min       = 4
	ctaNATv6Max       = 5
	ctaProtoNATMin    = 1
	ctaProtoNATMax    = 2
	ctaCounterPackets = 1
	ctaCounterBytes   = 2
	ctaTimestampStart = 1
	ctaTimestampStop  = 2
	ctaHelpName       = 1
	ctaSeqAdjPosition = 1
	ctaSeqAdjBefore   = 2
	ctaSeqAdjAfter    = 3
)

// enum ctattr_stats_global.
const (
	ctaStatsGlobalEntries = 1
	ctaStatsGlobalMax     = 2
)

// enums ctattr_expect and ctattr_expect_nat.
const (
	ctaExpectMaster   = 1
	ctaExpectTuple    = 2
	ctaExpectMask     = 3
	ctaExpectTimeout  = 4
	ctaExpectHelpName = 6
	ctaExpectZone     = 7
	ctaExpectFlags    = 8
	ctaExpectClass    = 9
	ctaExpectNAT      = 10
	ctaExpectFunction = 11

	ctaExpectNATDir   = 1
	ctaExpectNATTuple = 2
)

// headerLen is the size of struct nfgenmsg: family, version, resource id.
const headerLen = 4

// helperNameMax is NF_CT_HELPER_NAME_LEN; a longer name is not the kernel's.
const helperNameMax = 16

// message wraps encoded attributes for the family of addr.
func message(kind netlink.HeaderType, flags netlink.HeaderFlags, family uint8, attrs []byte) netlink.Message {
	data := make([]byte, headerLen, headerLen+len(attrs))
	data[0] = family
	return netlink.Message{
		Header: netlink.Header{Type: kind, Flags: netlink.Request | flags},
		Data:   append(data, attrs...),
	}
}

func familyOf(addr netip.Addr) uint8 {
	if addr.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func newEncoder() *netlink.AttributeEncoder {
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	return ae
}
