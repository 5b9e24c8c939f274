// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"fmt"
	"strings"
	"time"
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

// Adjustment is by how much the sequence numbers of a TCP direction are moved,
// since a helper changed lengths: before and after a sequence number.
type Adjustment struct {
	Position      uint32
	Before, After int32
}

// Flow is one conntrack entry.
type Flow struct {
	Orig, Reply Tuple
	Master      *Tuple // original tuple of the entry whose helper expected this one, or nil
	Status      Status
	Timeout     time.Duration // left to live, in seconds; in destroy events too, 0 if it ran out
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
	// OrigAdjust and ReplyAdjust are nil where no helper changed a direction's
	// length. Events of other changes than these leave them out.
	OrigAdjust, ReplyAdjust *Adjustment
}

// Clone copies a flow that is only valid for the time of a call.
func (f *Flow) Clone() *Flow {
	c := *f
	c.Master, c.TCP, c.SCTP = cloned(f.Master), cloned(f.TCP), cloned(f.SCTP)
	c.OrigCounters, c.ReplyCounters = cloned(f.OrigCounters), cloned(f.ReplyCounters)
	c.OrigAdjust, c.ReplyAdjust = cloned(f.OrigAdjust), cloned(f.ReplyAdjust)
	return &c
}

func cloned[T any](p *T) *T {
	if p == nil {
		return nil
	}
	c := *p
	return &c
}
