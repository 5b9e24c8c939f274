// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// decoder reads entries, each into the memory of the one before.
type decoder struct {
	flow     Flow
	master   Tuple
	tcp      TCP
	sctp     SCTP
	counters [2]Counters
	adjust   [2]Adjustment
	zone     uint16
}

// decode reads the payload of a CT_NEW or CT_DELETE message: struct nfgenmsg and
// attributes. Unknown attributes are skipped. The flow is valid until the next
// call.
func (d *decoder) decode(data []byte) (*Flow, error) {
	if len(data) < headerLen {
		return nil, fmt.Errorf("decode conntrack entry: %d octets are shorter than the header", len(data))
	}
	d.flow, d.zone = Flow{}, 0
	a := attributes{rest: data[headerLen:]}
	for a.next() {
		d.attribute(&a)
	}
	if a.err == nil && (!d.flow.Orig.Src.IsValid() || !d.flow.Reply.Src.IsValid()) {
		a.err = errors.New("without both tuples")
	}
	if a.err != nil {
		return nil, fmt.Errorf("decode conntrack entry: %w", a.err)
	}
	if d.zone != 0 { // of both directions; else a tuple may have its own
		d.flow.Orig.Zone, d.flow.Reply.Zone = d.zone, d.zone
	}
	return &d.flow, nil
}

func (d *decoder) attribute(a *attributes) {
	f := &d.flow
	switch a.kind {
	case ctaTupleOrig:
		f.Orig.decode(a)
	case ctaTupleReply:
		f.Reply.decode(a)
	case ctaTupleMaster:
		d.master.decode(a)
		f.Master = &d.master
	case ctaStatus:
		f.Status = Status(a.uint32())
	case ctaProtoInfo:
		d.protoInfo(a)
	case ctaHelp:
		d.help(a)
	case ctaTimeout:
		f.Timeout = time.Duration(a.uint32()) * time.Second
	case ctaMark:
		f.Mark = a.uint32()
	case ctaID:
		f.ID = a.uint32()
	case ctaZone:
		d.zone = a.uint16()
	case ctaCountersOrig:
		f.OrigCounters = d.counters[0].decode(a)
	case ctaCountersReply:
		f.ReplyCounters = d.counters[1].decode(a)
	case ctaSeqAdjOrig:
		f.OrigAdjust = d.adjust[0].decode(a)
	case ctaSeqAdjReply:
		f.ReplyAdjust = d.adjust[1].decode(a)
	case ctaTimestamp:
		f.decodeTimestamp(a)
	}
}

func (d *decoder) protoInfo(a *attributes) {
	in := a.inside()
	for in.next() {
		switch in.kind {
		case ctaProtoInfoTCP:
			d.tcp = TCP{}
			d.flow.TCP = &d.tcp
			d.tcp.decode(&in)
		case ctaProtoInfoSCTP:
			d.sctp = SCTP{}
			d.flow.SCTP = &d.sctp
			d.sctp.decode(&in)
		}
	}
	a.fail(in.err)
}

func (d *decoder) help(a *attributes) {
	in := a.inside()
	for in.next() {
		if in.kind == ctaHelpName {
			d.flow.Helper = in.name("helper name", helperNameMax)
		}
	}
	a.fail(in.err)
}

func (t *Tuple) decode(a *attributes) {
	*t = Tuple{}
	t.decodeParts(a)
	if a.err == nil {
		a.fail(t.check())
	}
}

func (t *Tuple) decodeParts(a *attributes) {
	in := a.inside()
	for in.next() {
		switch in.kind {
		case ctaTupleIP:
			t.decodeIP(&in)
		case ctaTupleProto:
			t.decodeProto(&in)
		case ctaTupleZone:
			t.Zone = in.uint16()
		}
	}
	a.fail(in.err)
}

func (t *Tuple) decodeIP(a *attributes) {
	in := a.inside()
	for in.next() {
		switch in.kind {
		case ctaIPv4Src:
			t.Src = in.addr(4)
		case ctaIPv4Dst:
			t.Dst = in.addr(4)
		case ctaIPv6Src:
			t.Src = in.addr(16)
		case ctaIPv6Dst:
			t.Dst = in.addr(16)
		}
	}
	a.fail(in.err)
}

func (t *Tuple) decodeProto(a *attributes) {
	in := a.inside()
	for in.next() {
		switch in.kind {
		case ctaProtoNum:
			t.Proto = in.uint8()
		case ctaProtoSrcPort:
			t.SrcPort = in.uint16()
		case ctaProtoDstPort:
			t.DstPort = in.uint16()
		case ctaProtoICMPID, ctaProtoICMPv6ID:
			t.ICMPID = in.uint16()
		case ctaProtoICMPType, ctaProtoICMPv6Type:
			t.ICMPType = in.uint8()
		case ctaProtoICMPCode, ctaProtoICMPv6Code:
			t.ICMPCode = in.uint8()
		}
	}
	a.fail(in.err)
}

func (t *TCP) decode(a *attributes) {
	in := a.inside()
	for in.next() {
		switch in.kind {
		case ctaTCPState:
			t.State = TCPState(in.uint8())
		case ctaTCPScaleOrig:
			t.OrigScale = in.uint8()
		case ctaTCPScaleReply:
			t.ReplyScale = in.uint8()
		case ctaTCPFlagsOrig:
			t.OrigFlags = in.tcpFlags()
		case ctaTCPFlagsReply:
			t.ReplyFlags = in.tcpFlags()
		}
	}
	a.fail(in.err)
}

func (s *SCTP) decode(a *attributes) {
	in := a.inside()
	for in.next() {
		switch in.kind {
		case ctaSCTPState:
			s.State = in.uint8()
		case ctaSCTPTagOrig:
			s.OrigTag = in.uint32()
		case ctaSCTPTagReply:
			s.ReplyTag = in.uint32()
		}
	}
	a.fail(in.err)
}

func (c *Counters) decode(a *attributes) *Counters {
	*c = Counters{}
	in := a.inside()
	for in.next() {
		switch in.kind {
		case ctaCounterPackets:
			c.Packets = in.uint64()
		case ctaCounterBytes:
			c.Bytes = in.uint64()
		}
	}
	a.fail(in.err)
	return c
}

func (j *Adjustment) decode(a *attributes) *Adjustment {
	*j = Adjustment{}
	in := a.inside()
	for in.next() {
		switch in.kind {
		case ctaSeqAdjPosition:
			j.Position = in.uint32()
		case ctaSeqAdjBefore:
			j.Before = int32(in.uint32())
		case ctaSeqAdjAfter:
			j.After = int32(in.uint32())
		}
	}
	a.fail(in.err)
	return j
}

func (f *Flow) decodeTimestamp(a *attributes) {
	in := a.inside()
	for in.next() {
		switch in.kind {
		case ctaTimestampStart:
			f.Start = wallTime(in.uint64())
		case ctaTimestampStop:
			f.Stop = wallTime(in.uint64())
		}
	}
	a.fail(in.err)
}

// wallTime converts nanoseconds since 1970; what does not fit is no time.
func wallTime(ns uint64) time.Time {
	if ns == 0 || ns > math.MaxInt64 {
		return time.Time{}
	}
	return time.Unix(0, int64(ns))
}
