// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"
)

const (
	valid       = DataplaneAdvertReasonADVERT_VALID
	short       = DataplaneAdvertReasonADVERT_SHORT
	badVersion  = DataplaneAdvertReasonADVERT_VERSION
	badType     = DataplaneAdvertReasonADVERT_TYPE
	badTTL      = DataplaneAdvertReasonADVERT_TTL
	badAuth     = DataplaneAdvertReasonADVERT_AUTH
	badChecksum = DataplaneAdvertReasonADVERT_CHECKSUM
	isFragment  = DataplaneAdvertReasonADVERT_FRAGMENT
)

// What adverts are tagged with here: the mark has bits outside its mask that
// must not come through.
var tagging = DataplaneSettings{TagMark: 0xf70, TagMask: 0xf0, TagPriority: 7}

var marked = skBuff{Mark: 0xabcd1286, Priority: 2}

const markTagged = 0xabcd1276

// expectAdvert runs a frame with a VRRP packet and compares everything that can
// have changed: action, octets, mark and priority, counters, and the record.
func (d *dataplane) expectAdvert(t *testing.T, direction string, a advert, b []byte,
	reason DataplaneAdvertReason, payload []byte) {
	t.Helper()
	d.forget(t)
	d.records(t)
	before := monotonicNow(t)
	got := run(t, d.program(direction), b, marked, checksumNone)
	after := monotonicNow(t)
	if got.action != actUnspec {
		t.Errorf("action %d, want TC_ACT_UNSPEC", int32(got.action))
	}
	sameBytes(t, "frame", got.frame, b)
	mark, priority := uint32(marked.Mark), uint32(marked.Priority)
	if reason == valid {
		mark, priority = markTagged, tagging.TagPriority
	}
	if got.skb.Mark != mark || got.skb.Priority != priority {
		t.Errorf("mark %#x priority %d, want %#x %d", got.skb.Mark, got.skb.Priority, mark, priority)
	}
	sameCounts(t, "vrrp", d.vrrpCounts(t), map[DataplaneVrrpCounter]uint64{DataplaneVrrpCounter(reason): 1})
	d.expectCounts(t, counts{}, counts{})

	records := d.records(t)
	if len(records) != 1 {
		t.Fatalf("%d records, want 1", len(records))
	}
	r := records[0]
	if r.TimeNs < before || r.TimeNs > after {
		t.Errorf("time %d, want between %d and %d", r.TimeNs, before, after)
	}
	want := DataplaneAdvert{
		TimeNs: r.TimeNs, Ifindex: loopback, SrcMac: [6]uint8(virtualMAC), Ttl: a.ttl, Reason: reason,
		Len: uint16(len(payload)),
	}
	want.Src.Word, want.Dst.Word = words(a.src), words(a.dst)
	if direction == egress {
		want.Out = 1
	}
	if a.ah {
		want.Ah = 1
	}
	var ids []uint16
	for _, tag := range a.tags {
		if tag.id&0xfff != 0 {
			ids = append(ids, tag.id&0xfff)
		}
	}
	ids = append(ids, 0, 0)
	want.VlanOuter, want.VlanInner = ids[0], ids[1]
	if r.DataplaneAdvert != want {
		t.Errorf("record\n%+v, want\n%+v", r.DataplaneAdvert, want)
	}
	sameBytes(t, "payload of the record", r.payload, payload)
}

func monotonicNow(t *testing.T) uint64 {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		t.Fatal(err)
	}
	return uint64(ts.Nano())
}

// goodAdverts are the kinds that keepalived sends.
func goodAdverts() map[string]advert {
	pseudo := advert3()
	pseudo.sum = sumPseudo
	return map[string]advert{
		"v2": advert2(), "v2 pass": advertPass(), "v2 ah": advertAH(),
		"v3": advert3(), "v3 pseudo-header": pseudo, "v3 ipv6": advert3v6(),
	}
}

// eachAdvert calls f for both directions and every good kind.
func eachAdvert(t *testing.T, f func(t *testing.T, direction string, a advert)) {
	for _, direction := range []string{egress, ingress} {
		good := goodAdverts()
		for _, name := range slices.Sorted(maps.Keys(good)) {
			t.Run(direction+"/"+name, func(t *testing.T) { f(t, direction, good[name]) })
		}
	}
}

func addrs(n int, ipv6 bool) (all []netip.Addr) {
	a := netip.MustParseAddr("198.51.100.100")
	if ipv6 {
		a = netip.MustParseAddr("2001:db8:3::1")
	}
	for range n {
		all = append(all, a)
		a = a.Next()
	}
	return all
}

// One change to a good advert that leaves it valid.
func TestAdvertValid(t *testing.T) {
	d := newDataplane(t)
	put(t, d.Settings, uint32(0), tagging)
	cases := []struct {
		name    string
		version uint8 // 0: any
		family  int   // 0: both
		mutate  func(*advert)
	}{
		{"as it is", 0, 0, func(*advert) {}},
		{"padded frame", 0, 0, func(a *advert) { a.padding = 14 }},
		{"resigning", 0, 0, func(a *advert) { a.priority = 0 }},
		{"address owner", 0, 0, func(a *advert) { a.priority = 255 }},
		{"vrid 255", 0, 0, func(a *advert) { a.vrid = 255 }},
		{"20 addresses", 0, 0, func(a *advert) { a.vips = addrs(20, a.src.Is6()) }},
		{"as many addresses as can be", 0, 4, func(a *advert) { a.vips = addrs(255, false) }},
		{"as many addresses as fit", 0, 6, func(a *advert) { a.vips = addrs(127, true) }},
		{"no interval", 0, 0, func(a *advert) { a.interval = 0 }},
		{"longest interval", 3, 0, func(a *advert) { a.interval = 0xfff }},
		{"reserved bits of version 3", 3, 0, func(a *advert) { a.interval |= 0xf000 }},
		{"eight octets behind the addresses", 2, 0, func(a *advert) { a.password += "\x00\x00\x00\x00\x00\x00\x00\x00" }},
		{"unicast", 0, 4, func(a *advert) { a.dst = remote4 }},
		{"unicast", 0, 6, func(a *advert) { a.src, a.dst = unique6, remote6 }},
		{"unicast, summed as if it were multicast", 3, 4, func(a *advert) { a.dst, a.sum = remote4, sumGroup }},
		{"unicast, ttl 64", 0, 4, func(a *advert) { a.dst, a.ttl = remote4, 64 }},
		{"unicast, ttl 64", 0, 6, func(a *advert) { a.src, a.dst, a.ttl = unique6, remote6, 64 }},
		{"ip options", 0, 4, func(a *advert) {
			a.options = []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}}
		}},
		{"hop-by-hop", 0, 6, func(a *advert) { a.ext = []extension{hopByHop} }},
		{"atomic fragment", 0, 6, func(a *advert) { a.ext = []extension{atomicFragment} }},
		{"802.1Q", 0, 0, func(a *advert) { a.tags = []tag{{0x8100, 0xe014}} }},
		{"802.1ad with 802.1Q", 0, 0, func(a *advert) { a.tags = []tag{{0x88a8, 0x0064}, {0x8100, 0xe014}} }},
		{"priority tag", 0, 0, func(a *advert) { a.tags = []tag{{0x8100, 0xe000}} }},
	}
	eachAdvert(t, func(t *testing.T, direction string, good advert) {
		for _, c := range cases {
			a := good
			if c.version != 0 && c.version != a.version || c.family == 4 && a.src.Is6() || c.family == 6 && !a.src.Is6() {
				continue
			}
			c.mutate(&a)
			t.Run(c.name, func(t *testing.T) {
				d.expectAdvert(t, direction, a, a.bytes(t), valid, a.vrrp())
			})
		}
	})
}

// One change to a good advert, and why it is not to be believed.
func TestAdvertInvalid(t *testing.T) {
	d := newDataplane(t)
	put(t, d.Settings, uint32(0), tagging)
	cases := []struct {
		name   string
		only   func(advert) bool // nil: any
		reason DataplaneAdvertReason
		mutate func(*advert)
	}{
		{"no address", nil, short, func(a *advert) { a.count = -1 }},
		{"no address, none counted", nil, short, func(a *advert) { a.vips = nil; a.password = "" }},
		{"one address too few", advert.is3, short, func(a *advert) { a.count = len(a.vips) + 1 }},
		{"255 addresses counted", nil, short, func(a *advert) { a.count = 255 }},
		{"no authentication data", advert.is2, short, func(a *advert) { a.password = "" }},
		{"half of the authentication data", advert.is2, short, func(a *advert) { a.password = "seven\x00\x00" }},
		{"vrid 0", nil, short, func(a *advert) { a.vrid = 0 }},
		{"version 0", nil, badVersion, func(a *advert) { a.version = 0 }},
		{"version 1", nil, badVersion, func(a *advert) { a.version = 1 }},
		{"version 4", nil, badVersion, func(a *advert) { a.version = 4 }},
		{"version 15", nil, badVersion, func(a *advert) { a.version = 15 }},
		{"version 2 over ipv6", advert.is6, badVersion, func(a *advert) { a.version = 2; a.interval = 1 }},
		{"type 0", nil, badType, func(a *advert) { a.kind = 0 }},
		{"type 2", nil, badType, func(a *advert) { a.kind = 2 }},
		{"type 15", nil, badType, func(a *advert) { a.kind = 15 }},
		{"ttl 254", nil, badTTL, func(a *advert) { a.ttl = 254 }},
		{"ttl 1", nil, badTTL, func(a *advert) { a.ttl = 1 }},
		{"ttl 0", nil, badTTL, func(a *advert) { a.ttl = 0 }},
		{"another multicast group, ttl 64", advert.is4, badTTL, func(a *advert) {
			a.dst, a.ttl = netip.MustParseAddr("239.1.2.3"), 64
		}},
		{"authentication 3", advert.is2, badAuth, func(a *advert) { a.auth = 3 }},
		{"authentication 255", advert.is2, badAuth, func(a *advert) { a.auth = 255 }},
		{"authentication by a header that is missing", advert.is2, badAuth, func(a *advert) { a.auth, a.ah = 2, false }},
		{"authentication header, but by password", advert.is2, badAuth, func(a *advert) { a.auth, a.ah = 1, true }},
		{"authentication header, but without", advert.is2, badAuth, func(a *advert) { a.auth, a.ah = 0, true }},
		{"authentication header in version 3", advert.is3, badAuth, func(a *advert) { a.ah = true }},
		{"checksum", nil, badChecksum, func(a *advert) { a.sum = sumWrong }},
		{"checksum, unicast", advert.is4, badChecksum, func(a *advert) { a.sum, a.dst, a.ttl = sumWrong, remote4, 9 }},
		{"checksum with pseudo-header in version 2", advert.is2, badChecksum, func(a *advert) { a.sum = sumPseudo }},
		{"first fragment", advert.is4noAH, isFragment, func(a *advert) { a.fragment = 0x2000 }},
		{"later fragment", advert.is4noAH, isFragment, func(a *advert) { a.fragment = 0x0001 }},
		{"first fragment", advert.is6, isFragment, func(a *advert) { a.ext = []extension{firstFragment} }},
		{"later fragment", advert.is6, isFragment, func(a *advert) { a.ext = []extension{laterFragment} }},
		{"ttl 254, tagged", nil, badTTL, func(a *advert) { a.ttl = 254; a.tags = []tag{{0x8100, 20}} }},
	}
	eachAdvert(t, func(t *testing.T, direction string, good advert) {
		for _, c := range cases {
			a := good
			if c.only != nil && !c.only(a) {
				continue
			}
			c.mutate(&a)
			t.Run(c.name, func(t *testing.T) {
				d.expectAdvert(t, direction, a, a.bytes(t), c.reason, a.vrrp())
			})
		}
	})
}

func (a advert) is4() bool     { return a.src.Is4() }
func (a advert) is4noAH() bool { return a.src.Is4() && !a.ah }
func (a advert) is6() bool     { return a.src.Is6() }
func (a advert) is2() bool     { return a.version == 2 }
func (a advert) is3() bool     { return a.version == 3 }

// Over IPv6 the pseudo-header is a must: a sum that is right without it is
// wrong, and so is one made over other addresses.
func TestAdvertPseudoHeader(t *testing.T) {
	d := newDataplane(t)
	put(t, d.Settings, uint32(0), tagging)
	a := advert3v6()
	vrrp := a.vrrp()
	vrrp[6], vrrp[7] = 0, 0
	check := internetChecksum(vrrp)
	vrrp[6], vrrp[7] = byte(check>>8), byte(check)
	d.expectAdvert(t, ingress, a, a.frame(t, vrrp), badChecksum, vrrp)

	vrrp = a.vrrp()
	a.src = a.src.Next()
	d.expectAdvert(t, ingress, a, a.frame(t, vrrp), badChecksum, vrrp)

	a = advert3()
	a.sum = sumPseudo
	vrrp = a.vrrp()
	a.src = a.src.Next()
	d.expectAdvert(t, ingress, a, a.frame(t, vrrp), badChecksum, vrrp)
}

// No single bit of a VRRP packet can change and leave it valid.
func TestAdvertAnyBit(t *testing.T) {
	d := newDataplane(t)
	put(t, d.Settings, uint32(0), tagging)
	eachAdvert(t, func(t *testing.T, direction string, a advert) {
		good := a.vrrp()
		for bit := range len(good) * 8 {
			d.forget(t)
			b := bytes.Clone(good)
			b[bit/8] ^= 1 << (bit % 8)
			got := run(t, d.program(direction), a.frame(t, b), marked, checksumNone)
			if got.skb.Mark != marked.Mark || got.skb.Priority != marked.Priority {
				t.Errorf("bit %d changed and still tagged", bit)
			}
			if n := d.vrrpCounts(t); n[0] != 0 || len(n) != 1 {
				t.Errorf("bit %d changed: counters %v, want one reason", bit, n)
			}
		}
		d.records(t)
	})
}

// A VRRP packet may be cut anywhere: by its IP length, or by the end of the frame.
func TestAdvertShort(t *testing.T) {
	d := newDataplane(t)
	put(t, d.Settings, uint32(0), tagging)
	eachAdvert(t, func(t *testing.T, direction string, a advert) {
		vrrp := a.vrrp()
		for n := range vrrp {
			t.Run(fmt.Sprintf("%d octets", n), func(t *testing.T) {
				d.expectAdvert(t, direction, a, a.frame(t, vrrp[:n]), short, vrrp[:n])
			})
		}
		whole := a.bytes(t)
		seen := a.headers() // from here on one can tell that it is VRRP
		if a.ah {
			seen += 2
		}
		for n := range whole {
			t.Run(fmt.Sprintf("frame of %d octets", n), func(t *testing.T) {
				if n >= seen {
					d.expectAdvert(t, direction, a, whole[:n], short, nil)
					return
				}
				d.forget(t)
				d.records(t)
				got, err := tryRun(d.program(direction), whole[:n], marked, checksumNone)
				if errors.Is(err, unix.EINVAL) && n < minRun(whole[:n]) {
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				sameBytes(t, "frame", got.frame, whole[:n])
				d.expectCounts(t, counts{}, counts{})
				if r := d.records(t); len(r) != 0 || got.skb.Mark != marked.Mark {
					t.Errorf("records %v, mark %#x: it was taken for VRRP", r, got.skb.Mark)
				}
			})
		}
	})
}

// More than fits the record: reported as far as it fits, and not believed.
func TestAdvertLong(t *testing.T) {
	d := newDataplane(t)
	put(t, d.Settings, uint32(0), tagging)
	for _, direction := range []string{egress, ingress} {
		a := advert3()
		a.password = string(make([]byte, 2048-12)) // zeros, which no checksum sees
		d.expectAdvert(t, direction, a, a.bytes(t), valid, a.vrrp())
		a.password += "\x00"
		d.expectAdvert(t, direction, a, a.bytes(t), short, a.vrrp()[:2048])
	}
}

// What is not VRRP behind an authentication header, or VRRP on an interface
// that the map does not name, is not looked at.
func TestNotAdvert(t *testing.T) {
	d := newDataplane(t)
	put(t, d.Settings, uint32(0), tagging)
	ah := advertAH().bytes(t)
	ah[advertAH().headers()] = 6 // TCP behind it
	for _, direction := range []string{egress, ingress} {
		d.expect(t, direction, ah, ah, forwarded, checksumNone, counts{})
		fragment := advertAH()
		fragment.fragment = 0x0003
		b := fragment.bytes(t)
		d.expect(t, direction, b, b, forwarded, checksumNone, counts{})
	}
	if err := d.Ifaces.Delete(uint32(loopback)); err != nil {
		t.Fatal(err)
	}
	b := advert3().bytes(t)
	for _, direction := range []string{egress, ingress} {
		d.expect(t, direction, b, b, skBuff{}, checksumNone, counts{})
	}
	if r := d.records(t); len(r) != 0 {
		t.Errorf("records %v, want none", r)
	}
}

// Without settings nothing is tagged; a priority of 0 leaves the skb's own.
func TestAdvertTagging(t *testing.T) {
	d := newDataplane(t)
	b := advert3().bytes(t)
	for _, c := range []struct {
		set            DataplaneSettings
		mark, priority uint32
	}{
		{DataplaneSettings{}, marked.Mark, marked.Priority},
		{DataplaneSettings{TagMark: 0x1, TagMask: 0xffffffff}, 0x1, marked.Priority},
		{DataplaneSettings{TagMask: 0xffff0000}, marked.Mark & 0xffff, marked.Priority},
		{DataplaneSettings{TagMark: 0x70, TagPriority: 7}, marked.Mark, 7},
		{tagging, markTagged, 7},
	} {
		put(t, d.Settings, uint32(0), c.set)
		for _, direction := range []string{egress, ingress} {
			got := run(t, d.program(direction), b, marked, checksumNone)
			if got.skb.Mark != c.mark || got.skb.Priority != c.priority {
				t.Errorf("%s, %+v: mark %#x priority %d", direction, c.set, got.skb.Mark, got.skb.Priority)
			}
		}
	}
	// A slot is not needed to watch VRRP.
	put(t, d.Ifaces, uint32(loopback), DataplaneIface{HasL2: 1})
	d.expectAdvert(t, ingress, advert3(), b, valid, advert3().vrrp())
}

// When user space does not read, records are lost and counted; the advert is
// tagged and its group's lease renewed all the same.
func TestAdvertRingFull(t *testing.T) {
	d := loadDataplane(t, func(spec *ebpf.CollectionSpec) {
		spec.Maps[DataplaneMapAdverts].MaxEntries = 4096
	})
	defer d.close(t)
	d.reset(t)
	put(t, d.Settings, uint32(0), tagging)
	a := advert3()
	a.vips = append(a.vips, addrs(199, false)...)
	b := a.bytes(t)
	const sent = 10 // of some 900 octets each: four fit
	for range sent {
		put(t, d.OwnAdverts, uint32(groupNumber), DataplaneOwnAdvert{})
		before := coarseNow(t)
		got := run(t, d.VippinEgress, b, marked, checksumNone)
		if got.skb.Mark != markTagged {
			t.Errorf("mark %#x, want it tagged", got.skb.Mark)
		}
		d.expectLease(t, groupNumber, before, a)
	}
	n := d.vrrpCounts(t)
	read := len(d.records(t))
	if n[DataplaneVrrpCounterVRRP_INVALID] != sent || read == 0 || read == sent {
		t.Errorf("counters %v, %d read of %d: want all valid and some lost", n, read, sent)
	}
	if lost := n[DataplaneVrrpCounterVRRP_RING_FULL]; lost != uint64(sent-read) {
		t.Errorf("%d counted as lost, want %d", lost, sent-read)
	}
}
