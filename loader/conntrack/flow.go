// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
)

// Status is the bit set enum ip_conntrack_status.
type Status uint32

// The bits of Status.
const (
	Expected     Status = 1 << iota // child of another entry, announced by its helper
	SeenReply                       // packets went both ways
	Assured                         // not dropped early when the table is full
	Confirmed                       // in the table
	SrcNAT                          // original direction's source is translated
	DstNAT                          // original direction's destination is translated
	SeqAdjust                       // TCP sequence numbers are adjusted
	SrcNATDone                      // source NAT was decided, if only for "none"
	DstNATDone                      // destination NAT was decided, if only for "none"
	Dying                           // removed from the table
	FixedTimeout                    // packets do not prolong the timeout
	Template                        // not a flow
	Untracked                       // obsolete
	HelperSet                       // helper was assigned explicitly
	Offload                         // in a flowtable
	HWOffload                       // in hardware
)

var statusNames = [...]string{
	"EXPECTED", "SEEN_REPLY", "ASSURED", "CONFIRMED", "SRC_NAT", "DST_NAT", "SEQ_ADJUST", "SRC_NAT_DONE",
	"DST_NAT_DONE", "DYING", "FIXED_TIMEOUT", "TEMPLATE", "UNTRACKED", "HELPER", "OFFLOAD", "HW_OFFLOAD",
}

// String names the bits as the kernel does, joined by "|"; unknown ones in
// hexadecimal.
func (s Status) String() string { return bitNames(uint32(s), statusNames[:]) }

func bitNames(bits uint32, names []string) string {
	var set []string
	for i, name := range names {
		if bits&(1<<i) != 0 {
			set = append(set, name)
			bits &^= 1 << i
		}
	}
	if bits != 0 || len(set) == 0 {
		set = append(set, fmt.Sprintf("%#x", bits))
	}
	return strings.Join(set, "|")
}

// TCPState is the connection's state as conntrack sees it, enum
// tcp_conntrack.
type TCPState uint8

// The states that have a meaning in both directions.
const (
	TCPNone TCPState = iota
	TCPSynSent
	TCPSynReceived
	TCPEstablished
	TCPFinWait
	TCPCloseWait
	TCPLastAck
	TCPTimeWait
	TCPClose
	TCPSynSent2
)

var tcpStateNames = [...]string{
	"NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE", "SYN_SENT2",
}

func (s TCPState) String() string {
	if int(s) < len(tcpStateNames) {
		return tcpStateNames[s]
	}
	return fmt.Sprintf("TCPState(%d)", uint8(s))
}

// TCPFlags is what conntrack remembers of one direction of a TCP connection,
// IP_CT_TCP_FLAG_*.
type TCPFlags uint8

// The bits of TCPFlags.
const (
	TCPWindowScale    TCPFlags = 1 << iota // window scaling was negotiated
	TCPSackPermitted                       // selective acknowledgements were negotiated
	TCPCloseInit                           // sent the first FIN
	TCPLiberal                             // packets outside the window are not invalid
	TCPUnacknowledged                      // data is not acknowledged yet
	TCPMaxAckSet                           // the highest acknowledgement seen is known
)

var tcpFlagNames = [...]string{
	"WINDOW_SCALE", "SACK_PERM", "CLOSE_INIT", "BE_LIBERAL", "DATA_UNACKNOWLEDGED", "MAXACK_SET",
}

func (f TCPFlags) String() string { return bitNames(uint32(f), tcpFlagNames[:]) }

// TCP is what an entry knows of its TCP connection.
type TCP struct {
	State                 TCPState
	OrigScale, ReplyScale uint8 // window scale exponents, RFC 7323 section 2.2: 0..14
	OrigFlags, ReplyFlags TCPFlags
}

// SCTP is what an entry knows of its association. Without the tags its packets
// are invalid to conntrack.
type SCTP struct {
	State             uint8  // enum sctp_conntrack
	OrigTag, ReplyTag uint32 // verification tags of each direction's packets, RFC 9260 section 8.5
}

// Counters count one direction's packets as they came in.
type Counters struct{ Packets, Bytes uint64 }

// Flow is one conntrack entry.
type Flow struct {
	Orig, Reply Tuple
	Master      *Tuple // original tuple of the entry whose helper expected this one, or nil
	Status      Status
	Timeout     time.Duration // left to live, in seconds; 0 in destroy events
	Mark        uint32
	// ID normally tells an entry from another one of the same tuples. It is a
	// hash of the entry's place in memory and its tuples, so a successor made
	// at once in the same place has the same.
	ID   uint32
	TCP  *TCP  // nil for other protocols
	SCTP *SCTP // nil for other protocols
	// OrigCounters and ReplyCounters are nil without nf_conntrack_acct. In
	// destroy events a direction without packets is nil, too.
	OrigCounters, ReplyCounters *Counters
	Helper                      string    // "ftp", "sip", … or ""
	Start, Stop                 time.Time // zero without nf_conntrack_timestamp
}

// decodeFlow reads the payload of a CT_NEW or CT_DELETE message: struct
// nfgenmsg and attributes. Unknown attributes are skipped.
func decodeFlow(data []byte) (*Flow, error) {
	if len(data) < headerLen {
		return nil, fmt.Errorf("decode conntrack entry: %d octets are shorter than the header", len(data))
	}
	ad, err := newDecoder(data[headerLen:])
	if err != nil {
		return nil, fmt.Errorf("decode conntrack entry: %w", err)
	}
	flow := new(Flow)
	zone := uint16(0)
	for ad.Next() {
		if ad.Type() == ctaZone {
			zone = ad.Uint16()
		} else {
			flow.decodeAttr(ad)
		}
	}
	if err := ad.Err(); err != nil {
		return nil, fmt.Errorf("decode conntrack entry: %w", err)
	}
	if !flow.Orig.Src.IsValid() || !flow.Reply.Src.IsValid() {
		return nil, fmt.Errorf("decode conntrack entry: without both tuples")
	}
	if zone != 0 { // of both directions; else a tuple may have its own
		flow.Orig.Zone, flow.Reply.Zone = zone, zone
	}
	return flow, nil
}

func (f *Flow) decodeAttr(ad *netlink.AttributeDecoder) {
	switch ad.Type() {
	case ctaTupleOrig:
		f.Orig = Tuple{}
		ad.Nested(f.Orig.decode)
	case ctaTupleReply:
		f.Reply = Tuple{}
		ad.Nested(f.Reply.decode)
	case ctaTupleMaster:
		f.Master = new(Tuple)
		ad.Nested(f.Master.decode)
	case ctaStatus:
		f.Status = Status(ad.Uint32())
	case ctaProtoInfo:
		ad.Nested(f.decodeProtoInfo)
	case ctaHelp:
		ad.Nested(f.decodeHelp)
	case ctaTimeout:
		f.Timeout = time.Duration(ad.Uint32()) * time.Second
	case ctaMark:
		f.Mark = ad.Uint32()
	case ctaID:
		f.ID = ad.Uint32()
	case ctaCountersOrig:
		f.OrigCounters = new(Counters)
		ad.Nested(f.OrigCounters.decode)
	case ctaCountersReply:
		f.ReplyCounters = new(Counters)
		ad.Nested(f.ReplyCounters.decode)
	case ctaTimestamp:
		ad.Nested(f.decodeTimestamp)
	}
}

func (c *Counters) decode(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case ctaCounterPackets:
			c.Packets = ad.Uint64()
		case ctaCounterBytes:
			c.Bytes = ad.Uint64()
		}
	}
	return nil
}

func (f *Flow) decodeTimestamp(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case ctaTimestampStart:
			f.Start = wallTime(ad.Uint64())
		case ctaTimestampStop:
			f.Stop = wallTime(ad.Uint64())
		}
	}
	return nil
}

// wallTime converts nanoseconds since 1970; what does not fit is no time.
func wallTime(ns uint64) time.Time {
	if ns == 0 || ns > math.MaxInt64 {
		return time.Time{}
	}
	return time.Unix(0, int64(ns))
}

func (f *Flow) decodeHelp(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		if ad.Type() == ctaHelpName {
			f.Helper = ad.String()
			if len(f.Helper) > helperNameMax {
				return fmt.Errorf("helper name of %d octets, at most %d", len(f.Helper), helperNameMax)
			}
		}
	}
	return nil
}

func (f *Flow) decodeProtoInfo(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		if ad.Type() == ctaProtoInfoTCP {
			f.TCP = new(TCP)
			ad.Nested(f.TCP.decode)
		}
		if ad.Type() == ctaProtoInfoSCTP {
			f.SCTP = new(SCTP)
			ad.Nested(f.SCTP.decode)
		}
	}
	return nil
}

func (s *SCTP) decode(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case ctaSCTPState:
			s.State = ad.Uint8()
		case ctaSCTPTagOrig:
			s.OrigTag = ad.Uint32()
		case ctaSCTPTagReply:
			s.ReplyTag = ad.Uint32()
		}
	}
	return nil
}

func (t *TCP) decode(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case ctaTCPState:
			t.State = TCPState(ad.Uint8())
		case ctaTCPScaleOrig:
			t.OrigScale = ad.Uint8()
		case ctaTCPScaleReply:
			t.ReplyScale = ad.Uint8()
		case ctaTCPFlagsOrig:
			tcpFlagsAttr(ad, &t.OrigFlags)
		case ctaTCPFlagsReply:
			tcpFlagsAttr(ad, &t.ReplyFlags)
		}
	}
	return nil
}

// tcpFlagsAttr reads a struct nf_ct_tcp_flags, whose mask means nothing here.
func tcpFlagsAttr(ad *netlink.AttributeDecoder, to *TCPFlags) {
	ad.Do(func(b []byte) error {
		if len(b) != 2 {
			return fmt.Errorf("tcp flags of %d octets, want 2", len(b))
		}
		*to = TCPFlags(b[0])
		return nil
	})
}
