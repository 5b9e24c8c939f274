// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"bytes"
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// rawExpectation is one as the kernel tells it of active FTP through NAT.
func rawExpectation(more ...[]byte) []byte {
	tuple := func(kind uint16, src, dst []byte, srcPort, dstPort []byte) []byte {
		return attr(kind|nested,
			attr(1|nested, attr(1, src), attr(2, dst)),
			attr(2|nested, attr(1, []byte{6}), attr(2, srcPort), attr(3, dstPort)))
	}
	ones := []byte{255, 255, 255, 255}
	return bytes.Join(append([][]byte{
		{unix.AF_INET, 0, 0, 0},
		tuple(2, []byte{198, 51, 100, 9}, []byte{198, 51, 100, 2}, []byte{0, 20}, []byte{0x1b, 0x11}),
		tuple(3, ones, ones, []byte{0, 0}, []byte{255, 255}),
		tuple(1, []byte{192, 0, 2, 1}, []byte{198, 51, 100, 9}, []byte{0x12, 0x34}, []byte{0, 21}),
	}, more...), nil)
}

func TestDecodeExpectation(t *testing.T) {
	saved := attr(2|nested, attr(1|nested, attr(1, []byte{192, 0, 2, 1}), attr(2, make([]byte, 4))),
		attr(2|nested, attr(1, []byte{6}), attr(2, []byte{0x1b, 0x11}), attr(3, []byte{0, 0})))
	got, err := decodeExpectation(rawExpectation(
		attr(4, []byte{0, 0, 1, 44}), attr(5, []byte{1, 2, 3, 4}), attr(6, []byte("ftp\x00")), attr(7, []byte{0, 9}),
		attr(8, []byte{0, 0, 0, 5}), attr(9, []byte{0, 0, 0, 2}),
		attr(10|nested, attr(1, []byte{0, 0, 0, 1}), saved),
		attr(11, []byte("nat-follow-master\x00")), attr(999, []byte{1}),
	))
	if err != nil {
		t.Fatal(err)
	}
	want := &Expectation{
		Master: Tuple{
			Src: netip.MustParseAddr("192.0.2.1"), Dst: netip.MustParseAddr("198.51.100.9"),
			Proto: unix.IPPROTO_TCP, SrcPort: 0x1234, DstPort: 21, Zone: 9,
		},
		Tuple: Tuple{
			Src: netip.MustParseAddr("198.51.100.9"), Dst: netip.MustParseAddr("198.51.100.2"),
			Proto: unix.IPPROTO_TCP, DstPort: 0x1b11, Zone: 9,
		},
		Timeout: 5 * time.Minute, Helper: "ftp", Flags: ExpectPermanent | ExpectUserspace, Class: 2,
		Function: "nat-follow-master", NAT: netip.MustParseAddrPort("192.0.2.1:6929"), NATReply: true,
	}
	if diff := cmp.Diff(want, got, sameAddr, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	anybody := attr(3|nested, attr(1|nested, attr(1, make([]byte, 4)), attr(2, []byte{255, 255, 255, 255})),
		attr(2|nested, attr(1, []byte{6}), attr(2, []byte{255, 255}), attr(3, []byte{255, 255})))
	got, err = decodeExpectation(rawExpectation(anybody))
	if err != nil || !got.AnySrc || got.Tuple.SrcPort != 20 {
		t.Errorf("from anybody's port 20: %+v, %v", got, err)
	}
}

func TestDecodeExpectationRefusesMalformed(t *testing.T) {
	for name, data := range map[string][]byte{
		"shorter than the header":     {2},
		"without master, tuple":       {2, 0, 0, 0},
		"helper name of 17 octets":    rawExpectation(attr(6, bytes.Repeat([]byte("x"), 17))),
		"function of 65 octets":       rawExpectation(attr(11, bytes.Repeat([]byte("x"), 65))),
		"attribute 4 is not a uint32": rawExpectation(attr(4, []byte{1})),
		"tuple has no source":         rawExpectation(attr(10|nested, attr(2|nested))),
		"invalid attribute: cut off":  append(rawExpectation(), 1, 2),
	} {
		if e, err := decodeExpectation(data); err == nil || !strings.HasPrefix(err.Error(), "decode expectation: ") || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
	}
}

// FuzzDecodeExpectation: whatever comes, decoding ends.
func FuzzDecodeExpectation(f *testing.F) {
	f.Add(rawExpectation())
	f.Add(rawExpectation(attr(10|nested, attr(1, []byte{0, 0, 0, 1}), rawTuple(2)), attr(6, []byte("sip\x00"))))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := decodeExpectation(data)
		if err == nil && (!e.Master.Src.IsValid() || len(e.Helper) > helperNameMax) {
			t.Errorf("decoded %+v", e)
		}
	})
}

func TestDecodeAdjustments(t *testing.T) {
	adjust := func(kind uint16, before, after byte) []byte {
		return attr(kind|nested, attr(1, []byte{0, 1, 0, 0}), attr(2, []byte{255, 255, 255, before}), attr(3, []byte{0, 0, 0, after}))
	}
	flow, err := decodeFlow(rawFlow(adjust(15, 255, 7), adjust(16, 254, 8)))
	if err != nil || *flow.OrigAdjust != (Adjustment{65536, -1, 7}) || *flow.ReplyAdjust != (Adjustment{65536, -2, 8}) {
		t.Errorf("%+v, %v", flow, err)
	}
}

// TestDecoderForgets: nothing of one flow is in the next one; a clone has all.
func TestDecoderForgets(t *testing.T) {
	var d decoder
	rich := rawFlow(attr(5|nested, attr(1, []byte("ftp"))), rawTuple(14), attr(18, []byte{0, 9}),
		attr(4|nested, attr(1|nested, attr(1, []byte{3}))), attr(9|nested, attr(1, make([]byte, 8))),
		attr(15|nested, attr(1, []byte{0, 0, 0, 1})))
	first, err := d.decode(rich)
	if err != nil {
		t.Fatal(err)
	}
	kept := first.Clone()
	plain, err := d.decode(rawFlow())
	if err != nil {
		t.Fatal(err)
	}
	for got, data := range map[*Flow][]byte{kept: rich, plain: rawFlow()} {
		want, err := decodeFlow(data)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, sameAddr); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
	if kept.TCP == nil || kept.TCP.State != TCPEstablished || kept.Master == nil || kept.OrigAdjust == nil {
		t.Errorf("kept %+v", kept)
	}
}

// TestJoinAndLeave: a listener hears of groups while it is in them.
func TestJoinAndLeave(t *testing.T) {
	l := newLab(t, nothing)
	listener, run := l.subscribe(t, Destroys, readBuffer)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events := run(ctx)
	made := entries(3)
	create := func(i int) {
		t.Helper()
		results, err := l.conn.Create(made[i : i+1])
		allNil(t, results, err)
	}
	create(0)
	if err := listener.Join(News | Updates); err != nil {
		t.Fatal(err)
	}
	create(1)
	if first := await(t, events, New); first.Orig != made[1].Orig {
		t.Errorf("heard of %v first", first.Orig)
	}
	if err := listener.Leave(News | Updates); err != nil {
		t.Fatal(err)
	}
	create(2)
	results, err := l.conn.Delete([]Ref{{Orig: made[2].Orig}})
	allNil(t, results, err)
	for event := range events {
		if event.Type != Destroy {
			t.Errorf("heard %v of %v", event.Type, event.Flow.Orig)
		}
		cancel()
	}
}
