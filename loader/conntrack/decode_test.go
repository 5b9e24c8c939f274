// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

var sameAddr = cmpopts.EquateComparable(netip.Addr{})

// attr encodes one attribute by hand, so that the codec is not checked against
// itself: native-endian length and type, padding to four octets.
func attr(kind uint16, payload ...[]byte) []byte {
	data := bytes.Join(payload, nil)
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(data)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, data...)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}

const nested = 1 << 15

func rawTuple(kind uint16) []byte {
	return attr(kind|nested,
		attr(1|nested, attr(1, []byte{192, 0, 2, 1}), attr(2, []byte{198, 51, 100, 2})),
		attr(2|nested, attr(1, []byte{6}), attr(2, []byte{0x12, 0x34}), attr(3, []byte{0, 80})))
}

func rawFlow(more ...[]byte) []byte {
	return bytes.Join(append([][]byte{{unix.AF_INET, 0, 0, 0}, rawTuple(1), rawTuple(2)}, more...), nil)
}

var rawParsed = Tuple{
	Src: netip.MustParseAddr("192.0.2.1"), Dst: netip.MustParseAddr("198.51.100.2"),
	Proto: unix.IPPROTO_TCP, SrcPort: 0x1234, DstPort: 80,
}

func TestDecodeReadsEveryAttribute(t *testing.T) {
	counters := func(kind uint16, packets, octets byte) []byte {
		return attr(kind|nested, attr(1, make([]byte, 7), []byte{packets}), attr(2, make([]byte, 7), []byte{octets}))
	}
	got, err := decodeFlow(rawFlow(
		attr(3, []byte{0, 0, 1, 0x8e}),
		attr(4|nested, attr(1|nested, attr(1, []byte{3}), attr(2, []byte{7}), attr(3, []byte{9}),
			attr(4, []byte{0x23, 0}), attr(5, []byte{0x0b, 0}))),
		attr(5|nested, attr(1, []byte("ftp\x00"))),
		attr(7, []byte{0, 0, 0, 120}),
		attr(8, []byte{0, 0, 1, 0}),
		counters(9, 1, 2), counters(10, 3, 4),
		attr(12, []byte{0xde, 0xad, 0, 1}),
		rawTuple(14),
		attr(18, []byte{0, 9}),
		attr(20|nested, attr(1, []byte{0, 0, 0, 0, 0x3b, 0x9a, 0xca, 0}), attr(2, []byte{0xff, 0, 0, 0, 0, 0, 0, 0})),
		attr(999, []byte{1, 2, 3}),
	))
	if err != nil {
		t.Fatal(err)
	}
	zoned, master := rawParsed, rawParsed
	zoned.Zone = 9
	want := &Flow{
		Orig: zoned, Reply: zoned, Master: &master,
		Status:  Confirmed | Assured | SeenReply | SrcNATDone | DstNATDone,
		Timeout: 2 * time.Minute, Mark: 256, ID: 0xdead0001, Helper: "ftp", Start: time.Unix(1, 0),
		TCP: &TCP{State: TCPEstablished, OrigScale: 7, ReplyScale: 9,
			OrigFlags:  TCPWindowScale | TCPSackPermitted | TCPMaxAckSet,
			ReplyFlags: TCPWindowScale | TCPSackPermitted | TCPLiberal},
		OrigCounters: &Counters{1, 2}, ReplyCounters: &Counters{3, 4},
	}
	if diff := cmp.Diff(want, got, sameAddr); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestDecodeRefusesMalformed(t *testing.T) {
	overlong := attr(3, []byte{0, 0, 0, 0})
	binary.NativeEndian.PutUint16(overlong, 400)
	for name, data := range map[string][]byte{
		"shorter than the header":      {2, 0},
		"without both tuples":          {2, 0, 0, 0},
		"address of 3 octets":          rawFlow(attr(1|nested, attr(1|nested, attr(1, []byte{1, 2, 3})))),
		"address of 4 octets, want 16": rawFlow(attr(1|nested, attr(1|nested, attr(3, []byte{1, 2, 3, 4})))),
		"no source or no destination":  rawFlow(attr(1 | nested)),
		"mixes IPv4 and IPv6":          rawFlow(attr(2|nested, attr(1|nested, attr(1, make([]byte, 4)), attr(4, make([]byte, 16))))),
		"attribute 3 is not a uint32":  rawFlow(attr(3, []byte{1, 2})),
		"attribute 18 is not a uint16": rawFlow(attr(18, []byte{1})),
		"attribute 1 is not a uint64":  rawFlow(attr(9|nested, attr(1, []byte{1, 2, 3, 4}))),
		"tcp flags of 1 octets":        rawFlow(attr(4|nested, attr(1|nested, attr(4, []byte{1})))),
		"helper name of 17 octets":     rawFlow(attr(5|nested, attr(1, []byte(strings.Repeat("x", 17)+"\x00")))),
		"invalid attribute":            rawFlow(overlong),
		"tuple has no source":          bytes.Join([][]byte{{2, 0, 0, 0}, attr(14 | nested)}, nil),
	} {
		flow, err := decodeFlow(data)
		if err == nil || !strings.HasPrefix(err.Error(), "decode conntrack entry: ") || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %+v, %v", name, flow, err)
		}
	}
}

func TestDecodeKeepsZonesOfOneDirection(t *testing.T) {
	orig := attr(1|nested, attr(1|nested, attr(1, make([]byte, 4)), attr(2, make([]byte, 4))), attr(3, []byte{0, 4}))
	flow, err := decodeFlow(bytes.Join([][]byte{{2, 0, 0, 0}, orig, rawTuple(2)}, nil))
	if err != nil || flow.Orig.Zone != 4 || flow.Reply.Zone != 0 {
		t.Errorf("%+v, %v", flow, err)
	}
}

func TestInverse(t *testing.T) {
	four, six := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for _, c := range []struct{ in, want Tuple }{
		{Tuple{Proto: 17, SrcPort: 1, DstPort: 2, Zone: 3}, Tuple{Proto: 17, SrcPort: 2, DstPort: 1, Zone: 3}},
		{Tuple{Proto: 1, ICMPType: 8, ICMPCode: 0, ICMPID: 5}, Tuple{Proto: 1, ICMPType: 0, ICMPID: 5}},
		{Tuple{Proto: 58, ICMPType: 128, ICMPID: 5}, Tuple{Proto: 58, ICMPType: 129, ICMPID: 5}},
	} {
		c.in.Src, c.in.Dst, c.want.Src, c.want.Dst = four, six, six, four
		got, ok := c.in.Inverse()
		back, _ := got.Inverse()
		if !ok || got != c.want || back != c.in {
			t.Errorf("%v: inverse %v, want %v; and back %v", c.in, got, c.want, back)
		}
	}
	if got, ok := (Tuple{Proto: 1, ICMPType: 3}).Inverse(); ok {
		t.Errorf("an ICMP error has the answer %v", got)
	}
}

func TestNames(t *testing.T) {
	six := Tuple{Src: netip.MustParseAddr("2001:db8::1"), Dst: netip.MustParseAddr("2001:db8::2"), Proto: 58, ICMPType: 128, ICMPID: 7, Zone: 2}
	for got, want := range map[string]string{
		rawParsed.String():                   "tcp 192.0.2.1:4660 -> 198.51.100.2:80",
		six.String():                         "icmpv6 2001:db8::1 -> 2001:db8::2 type 128 code 0 id 7 zone 2",
		six.Source().String():                "[2001:db8::1]:7",
		Status(0).String():                   "0x0",
		(SrcNAT | Dying | 1<<20).String():    "SRC_NAT|DYING|0x100000",
		HWOffload.String():                   "HW_OFFLOAD",
		(TCPLiberal | TCPMaxAckSet).String(): "BE_LIBERAL|MAXACK_SET",
		TCPSynSent2.String():                 "SYN_SENT2",
		TCPState(10).String():                "TCPState(10)",
		ProtoName(89):                        "89",
		Overrun.String():                     "OVERRUN",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestEntriesThatCannotBe(t *testing.T) {
	good := Entry{Orig: rawParsed, NATSrc: netip.MustParseAddrPort("203.0.113.1:9"), Timeout: time.Second, TCP: &TCP{}}
	if err := good.encode(new(request)); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(*Entry){
		"no timeout":           func(e *Entry) { e.Timeout = 0 },
		"source becomes":       func(e *Entry) { e.NATSrc = netip.MustParseAddrPort("[2001:db8::1]:9") },
		"destination becomes":  func(e *Entry) { e.NATDst = netip.MustParseAddrPort("[2001:db8::1]:9") },
		"needs a TCP state":    func(e *Entry) { e.TCP = nil },
		"window scales 15":     func(e *Entry) { e.TCP = &TCP{OrigScale: 15} },
		"IPv4-mapped":          func(e *Entry) { e.Orig.Src = netip.MustParseAddr("::ffff:192.0.2.1") },
		"with an interface":    func(e *Entry) { e.Orig.Src = netip.MustParseAddr("fe80::1%eth0") },
		"mixes IPv4 and IPv6":  func(e *Entry) { e.Orig.Dst = netip.MustParseAddr("2001:db8::1") },
		"no source":            func(e *Entry) { e.Orig.Src, e.NATSrc = netip.Addr{}, netip.AddrPort{} },
		"type 3 has no answer": func(e *Entry) { e.Orig.Proto, e.Orig.ICMPType, e.TCP = 1, 3, nil },
	} {
		entry := good
		spoil(&entry)
		if err := entry.encode(new(request)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

// TestFilterMatches: older kernels ignore what they do not know of a filter.
func TestFilterMatches(t *testing.T) {
	flow := &Flow{Orig: rawParsed, Status: SrcNAT | Confirmed, Mark: 0x12}
	for _, c := range []struct {
		filter Filter
		want   bool
	}{
		{Filter{}, true},
		{Filter{Family: IPv4, Status: SrcNAT, StatusMask: SrcNAT | DstNAT, Mark: 0x10, MarkMask: 0xf0}, true},
		{Filter{Family: IPv6}, false},
		{Filter{Status: SrcNAT | DstNAT, StatusMask: SrcNAT | DstNAT}, false},
		{Filter{StatusMask: SrcNAT}, false},
		{Filter{Mark: 0x20, MarkMask: 0xf0}, false},
	} {
		if got := c.filter.Matches(flow); got != c.want {
			t.Errorf("%+v: %v, want %v", c.filter, got, c.want)
		}
	}
}

func TestSecondsRoundUp(t *testing.T) {
	for d, want := range map[time.Duration]uint32{1: 1, time.Second: 1, time.Second + 1: 2, time.Hour: 3600, 1<<63 - 1: 1<<31 - 1} {
		if got := seconds(d); got != want {
			t.Errorf("%v: %d, want %d", d, got, want)
		}
	}
}

// FuzzDecodeFlow: the corpus has what a kernel sent in the tests of this
// package. Whatever comes, decoding ends; and a tuple that was understood is
// found again by what it is encoded as.
func FuzzDecodeFlow(f *testing.F) {
	f.Add(rawFlow())
	f.Add([]byte{10, 0, 0, 0, 4, 0, 1, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		flow, err := decodeFlow(data)
		if err != nil {
			return
		}
		_ = flow.Orig.String() + flow.Status.String()
		if flow.Orig.checkRequest() != nil {
			return
		}
		once := recode(t, flow.Orig)
		if once.Src != flow.Orig.Src || once.Dst != flow.Orig.Dst || once.Proto != flow.Orig.Proto || once.Zone != flow.Orig.Zone {
			t.Fatalf("%+v came back as %+v", flow.Orig, once)
		}
		if twice := recode(t, once); twice != once {
			t.Fatalf("%+v came back as %+v", once, twice)
		}
	})
}

// decodeFlow decodes one message.
func decodeFlow(data []byte) (*Flow, error) { return new(decoder).decode(data) }

func recode(t *testing.T, tuple Tuple) Tuple {
	t.Helper()
	if err := tuple.checkRequest(); err != nil {
		t.Fatal(err)
	}
	var r request
	Ref{Orig: tuple, ID: 1}.encode(&r)
	data := message(msgGet, 0, familyOf(tuple.Src), append(r.buf, rawTuple(2)...)).Data
	flow, err := decodeFlow(data)
	if err != nil {
		t.Fatal(err)
	}
	return flow.Orig
}

// FuzzEachMessage: a datagram is split into messages that lie within it.
func FuzzEachMessage(f *testing.F) {
	one, err := netlink.Message{Header: netlink.Header{Length: 20}, Data: []byte{1, 2, 3, 4}}.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(one)
	f.Add(append(one, one...))
	f.Add([]byte{16, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, data []byte) {
		total := 0
		err := eachMessage(data, func(m netlink.Message) error {
			total += int(m.Header.Length)
			if len(m.Data) != int(m.Header.Length)-unix.NLMSG_HDRLEN {
				t.Fatalf("%d octets of %+v", len(m.Data), m.Header)
			}
			_ = verdict(m)
			return nil
		})
		if total > len(data) {
			t.Fatalf("%d octets in messages, %d in all (%v)", total, len(data), err)
		}
	})
}

func TestVerdicts(t *testing.T) {
	code := func(n int32) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(n)) }
	for _, c := range []struct {
		kind netlink.HeaderType
		data []byte
		want error
	}{
		{netlink.Error, code(0), nil},
		{netlink.Error, code(-2), ErrNotExist},
		{netlink.Error, code(-17), ErrExist},
		{netlink.Done, nil, nil},
		{netlink.Done, code(-12), unix.ENOMEM},
	} {
		if got := verdict(netlink.Message{Header: netlink.Header{Type: c.kind}, Data: c.data}); !errors.Is(got, c.want) {
			t.Errorf("%v %v: %v, want %v", c.kind, c.data, got, c.want)
		}
	}
	if verdict(netlink.Message{Header: netlink.Header{Type: netlink.Error}, Data: []byte{0}}) == nil {
		t.Error("a cut-off error message is a success")
	}
}
