// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"vippin/policy"
)

// The tags of WireFlow: field number and wire type.
const (
	tagProto    = 1<<3 | uint64(protowire.VarintType)
	tagSrc4     = 2<<3 | uint64(protowire.Fixed32Type)
	tagSrc6     = 3<<3 | uint64(protowire.BytesType)
	tagSrcPort  = 4<<3 | uint64(protowire.VarintType)
	tagDst4     = 5<<3 | uint64(protowire.Fixed32Type)
	tagDst6     = 6<<3 | uint64(protowire.BytesType)
	tagDstPort  = 7<<3 | uint64(protowire.VarintType)
	tagTo4      = 8<<3 | uint64(protowire.Fixed32Type)
	tagTo6      = 9<<3 | uint64(protowire.BytesType)
	tagToPort   = 10<<3 | uint64(protowire.VarintType)
	tagPin      = 11<<3 | uint64(protowire.VarintType)
	tagTimeout  = 12<<3 | uint64(protowire.VarintType)
	tagBits     = 13<<3 | uint64(protowire.VarintType)
	tagTCP      = 14<<3 | uint64(protowire.VarintType)
	tagMark     = 15<<3 | uint64(protowire.VarintType)
	tagGroup    = 16<<3 | uint64(protowire.VarintType)
	tagZone     = 17<<3 | uint64(protowire.VarintType)
	tagFrom4    = 18<<3 | uint64(protowire.Fixed32Type)
	tagFrom6    = 19<<3 | uint64(protowire.BytesType)
	tagFromPort = 20<<3 | uint64(protowire.VarintType)
	tagExtra    = 21<<3 | uint64(protowire.BytesType)
)

// allBits are the bits of a flow that this version knows.
const allBits = policy.FlowSeenReply | policy.FlowAssured

var errUnnamed = errors.New("pin or group is not in State")

// appendFlow writes a WireFlow without a tag of its own. It fails with errUnnamed.
func appendFlow(b []byte, f *policy.Flow, ids *idTable) ([]byte, error) {
	pin, pinGroup, ok := ids.pin(f.Pin)
	if !ok {
		return b, errUnnamed
	}
	b = appendKey(b, &f.FlowKey)
	b = appendOther(b, &f.To, &f.Src, tagTo4, tagTo6, tagToPort)
	b = appendNumber(b, tagPin, uint64(pin))
	b = appendNumber(b, tagTimeout, seconds(f.Timeout))
	b = appendNumber(b, tagBits, uint64(f.Bits&allBits))
	b = appendNumber(b, tagTCP, uint64(f.TCPState)|uint64(f.TCPScale[0])<<4|uint64(f.TCPScale[1])<<8)
	b = appendNumber(b, tagMark, uint64(f.Mark))
	if f.Group != pinGroup {
		group, ok := ids.group(f.Group)
		if !ok {
			return b, errUnnamed
		}
		b = appendVarint(b, tagGroup, uint64(group))
	}
	b = appendOther(b, &f.From, &f.Dst, tagFrom4, tagFrom6, tagFromPort)
	if f.Extra == nil {
		return b, nil
	}
	extra, err := proto.Marshal(extraToWire(f.Extra))
	if err != nil {
		return b, err
	}
	return protowire.AppendBytes(protowire.AppendVarint(b, tagExtra), extra), nil
}

// appendGone writes a WireFlow of a key and a public end.
func appendGone(b []byte, g *Gone) []byte {
	b = appendKey(b, &g.Key)
	return appendOther(b, &g.To, &g.Key.Src, tagTo4, tagTo6, tagToPort)
}

func appendKey(b []byte, k *policy.FlowKey) []byte {
	b = appendVarint(b, tagProto, uint64(k.Proto))
	b = appendAddr(b, &k.Src.Addr, tagSrc4, tagSrc6)
	b = appendNumber(b, tagSrcPort, uint64(k.Src.Port))
	b = appendAddr(b, &k.Dst.Addr, tagDst4, tagDst6)
	b = appendNumber(b, tagDstPort, uint64(k.Dst.Port))
	return appendNumber(b, tagZone, uint64(k.Zone))
}

// appendOther writes what of an end differs from another one.
func appendOther(b []byte, e, than *policy.End, tag4, tag6, tagPort uint64) []byte {
	if e.Addr != than.Addr {
		b = appendAddr(b, &e.Addr, tag4, tag6)
	}
	if e.Port != than.Port {
		b = appendVarint(b, tagPort, uint64(e.Port))
	}
	return b
}

func appendAddr(b []byte, addr *[16]byte, tag4, tag6 uint64) []byte {
	if is4(addr) {
		b = protowire.AppendVarint(b, tag4)
		return protowire.AppendFixed32(b, binary.BigEndian.Uint32(addr[12:]))
	}
	return protowire.AppendBytes(protowire.AppendVarint(b, tag6), addr[:])
}

func appendVarint(b []byte, tag, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendVarint(b, tag), v)
}

// appendNumber writes a field unless it has its default.
func appendNumber(b []byte, tag, v uint64) []byte {
	if v == 0 {
		return b
	}
	return appendVarint(b, tag, v)
}

// seconds are rounded up: 0 means that the timeout is not told.
func seconds(d time.Duration) uint64 {
	switch {
	case d <= 0:
		return 0
	case d >= math.MaxUint32*time.Second:
		return math.MaxUint32
	}
	return uint64((d + time.Second - 1) / time.Second)
}

// flowReader reads one WireFlow.
type flowReader struct {
	f                *policy.Flow
	pin, group       uint32
	hasGroup         bool
	hasSrc, hasDst   bool
	hasTo, hasFrom   bool // an address of its own
	toPort, fromPort int32
}

// readFlow reads a WireFlow into a zero Flow, whose pin and group it leaves to names.
func (r *flowReader) readFlow(b []byte, f *policy.Flow) error {
	*r = flowReader{f: f, toPort: -1, fromPort: -1}
	for len(b) > 0 {
		tag, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return fmt.Errorf("read a tag: %w", protowire.ParseError(n))
		}
		if num := tag >> 3; num == 0 || num > uint64(protowire.MaxValidNumber) {
			return fmt.Errorf("field %d: no such number", num)
		}
		used, err := r.field(tag, b[n:])
		if err != nil {
			return err
		}
		b = b[n+used:]
	}
	return r.complete()
}

// field reads the value of a field and tells how long it is.
func (r *flowReader) field(tag uint64, b []byte) (int, error) {
	switch tag & 7 {
	case uint64(protowire.VarintType):
		v, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return 0, fmt.Errorf("field %d: %w", tag>>3, protowire.ParseError(n))
		}
		return n, r.number(tag, v)
	case uint64(protowire.Fixed32Type):
		v, n := protowire.ConsumeFixed32(b)
		if n < 0 {
			return 0, fmt.Errorf("field %d: %w", tag>>3, protowire.ParseError(n))
		}
		r.addr4(tag, v)
		return n, nil
	case uint64(protowire.BytesType):
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return 0, fmt.Errorf("field %d: %w", tag>>3, protowire.ParseError(n))
		}
		return n, r.bytes(tag, v)
	}
	num, typ := protowire.DecodeTag(tag)
	n := protowire.ConsumeFieldValue(num, typ, b)
	if n < 0 {
		return 0, fmt.Errorf("field %d: %w", num, protowire.ParseError(n))
	}
	return n, nil
}

func (r *flowReader) number(tag, v uint64) error {
	limit := uint64(math.MaxUint32)
	switch tag {
	case tagProto:
		r.f.Proto, limit = uint8(v), math.MaxUint8
	case tagSrcPort:
		r.f.Src.Port, limit = uint16(v), math.MaxUint16
	case tagDstPort:
		r.f.Dst.Port, limit = uint16(v), math.MaxUint16
	case tagToPort:
		r.toPort, limit = int32(uint16(v)), math.MaxUint16
	case tagFromPort:
		r.fromPort, limit = int32(uint16(v)), math.MaxUint16
	case tagZone:
		r.f.Zone, limit = uint16(v), math.MaxUint16
	case tagPin:
		r.pin = uint32(v)
	case tagGroup:
		r.group, r.hasGroup = uint32(v), true
	case tagTimeout:
		r.f.Timeout = time.Duration(uint32(v)) * time.Second
	case tagBits:
		r.f.Bits = policy.FlowBits(v) & allBits
	case tagTCP:
		r.f.TCPState, r.f.TCPScale, limit = uint8(v&15), [2]uint8{uint8(v >> 4 & 15), uint8(v >> 8 & 15)}, 0xfff
	case tagMark:
		r.f.Mark = uint32(v)
	default:
		return nil // of a later version
	}
	if v > limit {
		return fmt.Errorf("%s is %d, over %d", fieldName(tag), v, limit)
	}
	return nil
}

// fieldName is the schema's name of a field of WireFlow.
func fieldName(tag uint64) protoreflect.Name {
	return (*WireFlow)(nil).ProtoReflect().Descriptor().Fields().ByNumber(protowire.Number(tag >> 3)).Name()
}

func (r *flowReader) addr4(tag uint64, v uint32) {
	addr := [16]byte{10: 0xff, 11: 0xff}
	binary.BigEndian.PutUint32(addr[12:], v)
	switch tag {
	case tagSrc4:
		r.f.Src.Addr, r.hasSrc = addr, true
	case tagDst4:
		r.f.Dst.Addr, r.hasDst = addr, true
	case tagTo4:
		r.f.To.Addr, r.hasTo = addr, true
	case tagFrom4:
		r.f.From.Addr, r.hasFrom = addr, true
	}
}

func (r *flowReader) bytes(tag uint64, v []byte) error {
	var addr *[16]byte
	var has *bool
	switch tag {
	case tagSrc6:
		addr, has = &r.f.Src.Addr, &r.hasSrc
	case tagDst6:
		addr, has = &r.f.Dst.Addr, &r.hasDst
	case tagTo6:
		addr, has = &r.f.To.Addr, &r.hasTo
	case tagFrom6:
		addr, has = &r.f.From.Addr, &r.hasFrom
	case tagExtra:
		var err error
		r.f.Extra, err = readExtra(v)
		return err
	default:
		return nil
	}
	if len(v) != 16 || is4((*[16]byte)(v)) {
		return fmt.Errorf("%s is no IPv6 address", fieldName(tag))
	}
	*addr, *has = [16]byte(v), true
	return nil
}

// complete fills in what is as in another end.
func (r *flowReader) complete() error {
	if !r.hasSrc {
		return errors.New("src is missing")
	}
	if !r.hasDst {
		return errors.New("dst is missing")
	}
	if !r.hasTo {
		r.f.To.Addr = r.f.Src.Addr
	}
	if r.f.To.Port = r.f.Src.Port; r.toPort >= 0 {
		r.f.To.Port = uint16(r.toPort)
	}
	if !r.hasFrom {
		r.f.From.Addr = r.f.Dst.Addr
	}
	if r.f.From.Port = r.f.Dst.Port; r.fromPort >= 0 {
		r.f.From.Port = uint16(r.fromPort)
	}
	return nil
}

// is4 tells whether an address of an End is an IPv4 one.
func is4(addr *[16]byte) bool {
	return binary.BigEndian.Uint64(addr[:8]) == 0 && binary.BigEndian.Uint32(addr[8:12]) == 0xffff
}
