// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"vippin/bpf"
	"vippin/loader/conntrack"
	"vippin/policy"
)

func octets(t *testing.T, value any) []byte {
	t.Helper()
	b, err := binary.Append(nil, binary.NativeEndian, value)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestKeyOctets: what the kernel hashes, octet by octet.
func TestKeyOctets(t *testing.T) {
	key := newFlowKey(0x01020304, 17, netip.MustParseAddrPort("198.51.100.3:4660"), netip.MustParseAddrPort("[2001:db8::1]:53"))
	want := binary.NativeEndian.AppendUint32(nil, 0x01020304)
	want = append(want, 17, 0, 0, 0)
	want = append(want, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 51, 100, 3)
	want = append(want, 0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)
	want = append(want, 0x12, 0x34, 0, 53)
	if got := octets(t, key); !bytes.Equal(got, want) {
		t.Errorf("key\n% x, want\n% x", got, want)
	}
	if got := keySelf(&key); got != netip.MustParseAddrPort("198.51.100.3:4660") {
		t.Errorf("self %v", got)
	}
	if got := keyRemote(&key); got != netip.MustParseAddrPort("[2001:db8::1]:53") {
		t.Errorf("remote %v", got)
	}
	if got := addrWords(netip.Addr{}); got != [4]uint32{} || wordsAddr(got).IsValid() {
		t.Errorf("no address: %v", got)
	}
}

func TestSourceKey(t *testing.T) {
	for text, bits := range map[string]uint32{
		"0.0.0.0/0": 128, "192.168.1.0/24": 152, "10.1.1.1/32": 160, "::/0": 32, "2001:db8::/32": 64, "2001:db8::1/128": 160,
	} {
		prefix := netip.MustParsePrefix(text)
		key := newSourceKey(9, prefix)
		if key.PrefixLen != bits || key.Slot != 9 {
			t.Errorf("%s: %d bits, slot %d, want %d, 9", text, key.PrefixLen, key.Slot, bits)
		}
		if got := sourcePrefix(&key); got != prefix {
			t.Errorf("%s comes back as %s", text, got)
		}
	}
}

func TestReplyTuple(t *testing.T) {
	for _, tuple := range []conntrack.Tuple{
		{Src: addrs("203.0.113.9")[0], Dst: addrs("198.51.100.3")[0], Proto: 6, SrcPort: 443, DstPort: 4000},
		{Src: addrs("203.0.113.9")[0], Dst: addrs("198.51.100.3")[0], Proto: 1, ICMPType: 0, ICMPID: 77},
		{Src: addrs("2001:db8::9")[0], Dst: addrs("2001:db8::3")[0], Proto: 58, ICMPType: 129, ICMPID: 78},
		{Src: addrs("203.0.113.9")[0], Dst: addrs("198.51.100.3")[0], Proto: 17, SrcPort: 53, DstPort: 4001, Zone: 5},
	} {
		key, ok := replyKey(3, tuple)
		if !ok || key.Slot != 3 {
			t.Errorf("%v: key %+v, %v", tuple, key, ok)
		}
		if got := replyTuple(&key, tuple.Zone); got != tuple {
			t.Errorf("%v comes back as %v", tuple, got)
		}
	}
	ping := conntrack.Tuple{Src: addrs("203.0.113.9")[0], Dst: addrs("198.51.100.3")[0], Proto: 1, ICMPType: 8, ICMPID: 77}
	if key, ok := replyKey(1, ping); ok {
		t.Errorf("a ping from outside has the key %+v", key)
	}
}

func TestDecodeAdvert(t *testing.T) {
	head := bpf.DataplaneAdvert{
		TimeNs: 5_000_000_000, Ifindex: 7, VlanOuter: 100, VlanInner: 20, SrcMac: [6]uint8{0, 0, 0x5e, 0, 1, 10},
		Out: 1, Ttl: 254, Ah: 1, Reason: bpf.DataplaneAdvertReasonADVERT_TTL, Len: 3,
	}
	head.Src.Word, head.Dst.Word = addrWords(addrs("198.51.100.3")[0]), addrWords(addrs("224.0.0.18")[0])
	record := append(octets(t, head), 0x31, 10, 100, 99, 99) // two octets of the slot's own
	got, err := decodeAdvert(record)
	if err != nil {
		t.Fatal(err)
	}
	want := policy.AdvertSeen{
		Time: 5 * time.Second, Ifindex: 7, Direction: policy.Out, VLAN: policy.VLAN{Outer: 100, Inner: 20},
		Src: addrs("198.51.100.3")[0], Dst: addrs("224.0.0.18")[0], SrcMAC: [6]byte{0, 0, 0x5e, 0, 1, 10},
		TTL: 254, AH: true, Reason: policy.AdvertTTL, Payload: []byte{0x31, 10, 100},
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("advert (-want +got):\n%s", diff)
	}
	for _, short := range [][]byte{nil, record[:advertHeader-1]} {
		if _, err := decodeAdvert(short); err == nil {
			t.Errorf("decoded a record of %d octets", len(short))
		}
	}
	if got, err := decodeAdvert(record[:advertHeader+1]); err != nil || len(got.Payload) != 1 {
		t.Errorf("truncated: %d octets, %v", len(got.Payload), err)
	}
}
