// SPDX-License-Identifier: Apache-2.0

package nfqueue

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// goodPacket is a message as the kernel sends it, without its netlink header.
func goodPacket(t testing.TB) []byte {
	t.Helper()
	attributes, err := encode(func(to *netlink.AttributeEncoder) {
		to.Bytes(attrPacketHeader, []byte{0, 0, 1, 2, 0x08, 0x00, 3})
		to.Uint32(attrMark, 0x100)
		to.Uint32(attrInIndex, 7)
		to.Uint32(attrOutIndex, 8)
		to.Uint32(attrLength, 1500)
		to.Bytes(attrPayload, []byte{0x45, 1, 2, 3})
		to.Bytes(99, []byte("something new"))
	})
	if err != nil {
		t.Fatal(err)
	}
	return append([]byte{unix.NFPROTO_IPV4, 0, 0, 9}, attributes...)
}

func TestDecode(t *testing.T) {
	var p Packet
	if err := p.decode(goodPacket(t)); err != nil {
		t.Fatal(err)
	}
	want := Packet{
		ID: 0x102, Family: unix.NFPROTO_IPV4, Hook: 3, Protocol: unix.ETH_P_IP, Mark: 0x100, InIndex: 7, OutIndex: 8, Length: 1500,
		Payload: []byte{0x45, 1, 2, 3},
	}
	if fmt.Sprint(p) != fmt.Sprint(want) {
		t.Errorf("read %v, want %v", p, want)
	}
}

// A message that is not whole is an error, and nothing of the one before it is
// left.
func TestDecodeMalformed(t *testing.T) {
	good := goodPacket(t)
	for name, data := range map[string][]byte{
		"empty": nil, "no attributes": good[:genLen], "half a header": good[:3],
		"cut in an attribute":   good[:genLen+6],
		"a short packet header": slices.Concat(good[:genLen], []byte{8, 0, attrPacketHeader, 0, 0, 0, 0, 1}),
		"a length of nothing":   slices.Concat(good[:genLen], []byte{0, 0, attrPacketHeader, 0}),
		"a length beyond":       slices.Concat(good[:genLen], []byte{200, 0, attrPacketHeader, 0, 0, 0, 0, 1}),
		"a short mark":          slices.Concat(good, []byte{6, 0, attrMark, 0, 1, 1, 0, 0}),
	} {
		p := Packet{Payload: []byte("of the one before")}
		if p.decode(data) == nil {
			t.Errorf("%s: read as %+v", name, p)
		}
		if bytes.Equal(p.Payload, []byte("of the one before")) {
			t.Errorf("%s: has the payload of the packet before", name)
		}
	}
	var p Packet
	if err := p.decode(good[:genLen]); !errors.Is(err, errNoID) {
		t.Errorf("without attributes: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(goodPacket(f))
	f.Fuzz(func(t *testing.T, data []byte) {
		var p Packet
		if p.decode(data) != nil {
			return
		}
		if len(p.Payload) > len(data) || !bytes.Contains(data, binary.BigEndian.AppendUint32(nil, p.ID)) {
			t.Errorf("%x became %+v", data, p)
		}
	})
}

// The columns of /proc/net/netfilter/nfnetlink_queue.
func TestOwner(t *testing.T) {
	const table = "    7   1234     0 2   128     0     0        0  1\n  747 4294962888     3 2 65531     0     0        3  1\n"
	for queue, want := range map[uint16]string{7: "1234", 747: "4294962888", 74: "", 1: ""} {
		if port, taken := owner(table, queue); port != want || taken != (want != "") {
			t.Errorf("queue %d: %q, %v", queue, port, taken)
		}
	}
	if text := process("4294962888"); text != "netlink port 4294962888" {
		t.Error(text)
	}
	if text := process("1"); !strings.HasSuffix(text, ", process 1") {
		t.Error(text)
	}
}
