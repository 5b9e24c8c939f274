// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"fmt"
	"math"
	"time"

	"google.golang.org/protobuf/proto"

	"vippin/policy"
)

// What few flows have goes through the generated code.

var discard = proto.UnmarshalOptions{DiscardUnknown: true}

func extraToWire(x *policy.FlowExtra) *WireExtra {
	w := &WireExtra{
		SctpState:    uint32(x.SCTPState),
		SctpTag:      x.SCTPTags[0],
		SctpReplyTag: x.SCTPTags[1],
		Helper:       x.Helper,
		Adjust:       adjustToWire(x.Adjust[0]),
		ReplyAdjust:  adjustToWire(x.Adjust[1]),
	}
	if x.Master != (policy.FlowKey{}) {
		w.Master = keyToWire(&x.Master)
	}
	return w
}

func readExtra(b []byte) (*policy.FlowExtra, error) {
	var w WireExtra
	if err := discard.Unmarshal(b, &w); err != nil {
		return nil, fmt.Errorf("extra: %w", err)
	}
	x := &policy.FlowExtra{
		SCTPState: uint8(min(w.GetSctpState(), math.MaxUint8)),
		SCTPTags:  [2]uint32{w.GetSctpTag(), w.GetSctpReplyTag()},
		Helper:    w.GetHelper(),
		Adjust:    [2]policy.SeqAdjust{adjustFromWire(w.GetAdjust()), adjustFromWire(w.GetReplyAdjust())},
	}
	if w.Master != nil {
		var err error
		if x.Master, err = keyFromWire(w.Master); err != nil {
			return nil, fmt.Errorf("extra: master: %w", err)
		}
	}
	return x, nil
}

func adjustToWire(a policy.SeqAdjust) *WireAdjust {
	if a == (policy.SeqAdjust{}) {
		return nil
	}
	return &WireAdjust{Position: a.Position, Before: a.Before, After: a.After}
}

func adjustFromWire(w *WireAdjust) policy.SeqAdjust {
	return policy.SeqAdjust{Position: w.GetPosition(), Before: w.GetBefore(), After: w.GetAfter()}
}

func keyToWire(k *policy.FlowKey) *WireKey {
	return &WireKey{
		Proto:   uint32(k.Proto),
		Src:     addrToWire(&k.Src),
		SrcPort: uint32(k.Src.Port),
		Dst:     addrToWire(&k.Dst),
		DstPort: uint32(k.Dst.Port),
		Zone:    uint32(k.Zone),
	}
}

func keyFromWire(w *WireKey) (k policy.FlowKey, err error) {
	if w.GetProto() > math.MaxUint8 {
		return k, fmt.Errorf("proto is %d, over %d", w.GetProto(), math.MaxUint8)
	}
	if w.GetZone() > math.MaxUint16 {
		return k, fmt.Errorf("zone is %d, over %d", w.GetZone(), math.MaxUint16)
	}
	k.Proto, k.Zone = uint8(w.GetProto()), uint16(w.GetZone())
	if k.Src, err = endFromWire(w.GetSrc(), w.GetSrcPort()); err != nil {
		return k, fmt.Errorf("src: %w", err)
	}
	if k.Dst, err = endFromWire(w.GetDst(), w.GetDstPort()); err != nil {
		return k, fmt.Errorf("dst: %w", err)
	}
	return k, checkKey(&k)
}

func expectationToWire(e *policy.Expectation) *WireExpectation {
	w := &WireExpectation{
		Master:   keyToWire(&e.Master),
		Proto:    uint32(e.Proto),
		SrcPort:  uint32(e.Src.Port),
		Dst:      addrToWire(&e.Dst),
		DstPort:  uint32(e.Dst.Port),
		Timeout:  uint32(seconds(e.Timeout)),
		Helper:   e.Helper,
		Class:    e.Class,
		Flags:    e.Flags,
		Function: e.Function,
		NatReply: e.NATReply,
	}
	if !e.AnySrc {
		w.Src = addrToWire(&e.Src)
	}
	if e.NAT != (policy.End{}) {
		w.Nat, w.NatPort = addrToWire(&e.NAT), uint32(e.NAT.Port)
	}
	return w
}

func readExpectation(b []byte) (e policy.Expectation, err error) {
	var w WireExpectation
	if err := discard.Unmarshal(b, &w); err != nil {
		return e, err
	}
	e = policy.Expectation{
		Proto:    uint8(w.GetProto()),
		AnySrc:   len(w.GetSrc()) == 0,
		Timeout:  time.Duration(w.GetTimeout()) * time.Second,
		Helper:   w.GetHelper(),
		Class:    w.GetClass(),
		Flags:    w.GetFlags(),
		Function: w.GetFunction(),
		NATReply: w.GetNatReply(),
	}
	if w.GetProto() > math.MaxUint8 {
		return e, fmt.Errorf("proto is %d, over %d", w.GetProto(), math.MaxUint8)
	}
	if e.Master, err = keyFromWire(w.GetMaster()); err != nil {
		return e, fmt.Errorf("master: %w", err)
	}
	if e.Src, err = endFromWire(w.GetSrc(), w.GetSrcPort()); err != nil {
		return e, fmt.Errorf("src: %w", err)
	}
	if e.Dst, err = endFromWire(w.GetDst(), w.GetDstPort()); err != nil {
		return e, fmt.Errorf("dst: %w", err)
	}
	if e.NAT, err = endFromWire(w.GetNat(), w.GetNatPort()); err != nil {
		return e, fmt.Errorf("nat: %w", err)
	}
	return e, checkExpectation(&e)
}

// addrToWire is 4 or 16 octets.
func addrToWire(e *policy.End) []byte {
	if is4(&e.Addr) {
		return e.Addr[12:]
	}
	return e.Addr[:]
}

// endFromWire takes an absent address for zero.
func endFromWire(addr []byte, port uint32) (policy.End, error) {
	e := policy.End{Port: uint16(port)}
	if port > math.MaxUint16 {
		return e, fmt.Errorf("port is %d, over %d", port, math.MaxUint16)
	}
	switch {
	case len(addr) == 16 && !is4((*[16]byte)(addr)):
		e.Addr = [16]byte(addr)
	case len(addr) == 4:
		e.Addr = [16]byte{10: 0xff, 11: 0xff, 12: addr[0], 13: addr[1], 14: addr[2], 15: addr[3]}
	case len(addr) != 0:
		return e, fmt.Errorf("%d octets are no address", len(addr))
	}
	return e, nil
}
