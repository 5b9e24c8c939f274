// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// frameKind is the number of a field of WireFrame, 0 = none that this version knows.
type frameKind protowire.Number

const (
	frameHello       frameKind = 1
	frameState       frameKind = 2
	frameBatch       frameKind = 3
	frameAck         frameKind = 4
	frameBulkBegin   frameKind = 5
	frameBulkEnd     frameKind = 6
	frameBulkRequest frameKind = 7
	frameDigest      frameKind = 8
	lastFrame                  = frameDigest
)

func (k frameKind) String() string {
	field := (*WireFrame)(nil).ProtoReflect().Descriptor().Fields().ByNumber(protowire.Number(k))
	if field == nil {
		return fmt.Sprintf("frame %d", int32(k))
	}
	return string(field.Name())
}

// appendFrame writes a frame with its length before it.
func appendFrame(b []byte, kind frameKind, payload []byte) []byte {
	size := protowire.SizeTag(protowire.Number(kind)) + protowire.SizeBytes(len(payload))
	b = protowire.AppendVarint(b, uint64(size))
	b = protowire.AppendTag(b, protowire.Number(kind), protowire.BytesType)
	return protowire.AppendBytes(b, payload)
}

func appendMessage(b []byte, kind frameKind, m proto.Message) ([]byte, error) {
	payload, err := proto.Marshal(m)
	if err != nil {
		return b, fmt.Errorf("write %s: %w", kind, err)
	}
	return appendFrame(b, kind, payload), nil
}

// frameReader takes a stream apart into frames.
type frameReader struct {
	from *bufio.Reader
	buf  []byte
}

// next returns a frame without its length, valid until the next call. io.EOF: the
// peer has ended the stream between two frames. A length over MaxFrame is refused
// before anything is allocated.
func (r *frameReader) next() ([]byte, error) {
	size, err := r.size()
	if err != nil {
		return nil, err
	}
	if cap(r.buf) < size {
		r.buf = make([]byte, size)
	}
	r.buf = r.buf[:size]
	if _, err := io.ReadFull(r.from, r.buf); err != nil {
		return nil, cut(err)
	}
	return r.buf, nil
}

// size reads the length of a frame, a varint.
func (r *frameReader) size() (size int, err error) {
	for shift := 0; shift < 21; shift += 7 {
		b, err := r.from.ReadByte()
		if err != nil && shift > 0 {
			err = cut(err)
		}
		if err != nil {
			return 0, err
		}
		if size |= int(b&0x7f) << shift; b < 0x80 && size <= MaxFrame {
			return size, nil
		}
	}
	return 0, fmt.Errorf("%w: frame of over %d octets", ErrProtocol, MaxFrame)
}

// cut is the error of a stream that ends within a frame.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// splitFrame finds the message in a WireFrame.
func splitFrame(b []byte) (kind frameKind, payload []byte, err error) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return 0, nil, fmt.Errorf("read a tag: %w", protowire.ParseError(n))
		}
		used := protowire.ConsumeFieldValue(num, typ, b[n:])
		if used < 0 {
			return 0, nil, fmt.Errorf("field %d: %w", num, protowire.ParseError(used))
		}
		if num <= protowire.Number(lastFrame) && typ == protowire.BytesType {
			if kind != 0 {
				return 0, nil, fmt.Errorf("%s and %s in one", kind, frameKind(num))
			}
			kind = frameKind(num)
			payload, _ = protowire.ConsumeBytes(b[n:])
		}
		b = b[n+used:]
	}
	return kind, payload, nil
}
