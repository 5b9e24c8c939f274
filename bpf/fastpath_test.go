// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"cmp"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket/layers"
)

// The fast path under test: device 1 is loopback, where test runs come in.
const (
	fastBuckets    = 16
	fastGeneration = 7
	fastIn         = 1 // device numbers
	fastElsewhere  = 2
	fastHop        = 3 // number of the one hop
	fastMTU        = 1400
	fastLease      = uint64(3600e9) // emulated machines are slow

	xdpDrop     = 1 // enum xdp_action
	xdpPass     = 2
	xdpTX       = 3
	xdpRedirect = 4

	fastTCP     = 0x80000000 // fast_types.h
	fast8021AD  = 0x40000000
	fastVirtual = 0x20000000
	fastReturns = 0x8000
)

// Digests are made with these.
var fastKeys = func() (keys [len(FastpathFastState{}.Keys)]uint64) {
	for i := range keys {
		keys[i] = 0x9e3779b97f4a7c15 * uint64(i+1)
	}
	return keys
}()

// What leaves has these MAC addresses.
var fastMACs = [12]byte{0x02, 0, 0, 0, 0, 0x0b, 0x02, 0, 0, 0, 0, 0x0a}

// fastpath is the loaded programs with maps of their own.
type fastpath struct {
	FastpathObjects
	tick uint32 // now, or a moment ago
}

var sharedFast *fastpath

// newFastpath returns the programs with empty tables: open, with two devices and
// one hop, which has no tags and leads where frames come from.
func newFastpath(t *testing.T) *fastpath {
	t.Helper()
	if sharedFast == nil {
		sharedFast = loadFastpath(t)
	}
	sharedFast.reset(t)
	return sharedFast
}

func loadFastpath(t *testing.T) *fastpath {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("loading BPF programs needs root")
	}
	spec, err := LoadFastpath()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	for _, name := range []string{FastpathMapByLocal, FastpathMapByPublic, FastpathMapUnpinned} {
		spec.Maps[name].MaxEntries = 64
	}
	spec.Maps[FastpathMapFast4].MaxEntries = fastBuckets
	spec.Maps[FastpathMapFast6].MaxEntries = fastBuckets
	f := &fastpath{}
	if err := spec.LoadAndAssign(&f.FastpathObjects, nil); err != nil {
		t.Fatalf("load programs: %+v", err)
	}
	return f
}

func (f *fastpath) reset(t *testing.T) {
	t.Helper()
	for i := range uint32(fastBuckets) {
		put(t, f.Fast4, i, FastpathFast4Bucket{})
		put(t, f.Fast6, i, FastpathFast6Bucket{})
	}
	clearMap[uint32](t, f.FastFarDevices)
	clearMap[FastpathFastVirtual](t, f.FastVirtual)
	put(t, f.FastState, uint32(0), FastpathFastState{
		Generation: fastGeneration, Keys: fastKeys, LeaseNs: fastLease, Mask4: fastBuckets - 1, Mask6: fastBuckets - 1,
	})
	put(t, f.FastDevices, uint32(loopback), FastpathFastDevice{Number: fastIn, Mac: [6]uint8(routerMAC), Turns: fastIn})
	put(t, f.FastOut, uint32(fastElsewhere), uint32(loopback))
	f.setHop(t, nil, fastIn)
	f.beat(t, coarseNow(t))
	f.forget(t)
	f.tick = f.now(t)
	f.exits(t)
	f.note(t)
	f.pinCounts(t, pinNumber)
}

// beat sets the daemon's last sign of life, and makes the program look anew.
func (f *fastpath) beat(t *testing.T, at uint64) {
	t.Helper()
	put(t, f.Heartbeat, uint32(0), at)
	f.forget(t)
}

func (f *fastpath) forget(t *testing.T) {
	t.Helper()
	var state FastpathFastState
	mustDo(t, f.FastState.Lookup(uint32(0), &state))
	state.Asked = 0
	put(t, f.FastState, uint32(0), state)
}

// setHop sets the hop that entries lead to.
func (f *fastpath) setHop(t *testing.T, tags []tag, device uint8) FastpathFastHop {
	t.Helper()
	hop := FastpathFastHop{Macs: fastMACs, Mtu: fastMTU, Device: device, Alive: 1, Tags: uint8(len(tags))}
	if len(tags) > 0 {
		hop.OuterProto, hop.OuterTci = be16(tags[0].ethertype), be16(tags[0].id)
	}
	if len(tags) > 1 {
		hop.InnerProto, hop.InnerTci = be16(tags[1].ethertype), be16(tags[1].id)
	}
	put(t, f.FastHops, uint32(fastHop), hop)
	return hop
}

// now is the kernel's tick, as the note of a packet has it.
func (f *fastpath) now(t *testing.T) uint32 {
	t.Helper()
	f.run(t, fastFrame(false, layers.IPProtocolUDP).bytes(t), nil)
	return f.note(t).Tick
}

// xdpMD is struct xdp_md; Data is how many octets of metadata stand before the frame.
type xdpMD struct {
	Data, DataEnd, DataMeta, IngressIfindex, RxQueueIndex, EgressIfindex uint32
}

// run passes one frame through XDP.
func (f *fastpath) run(t *testing.T, frame []byte, md *xdpMD) (uint32, []byte) {
	t.Helper()
	action, out, err := f.tryRun(frame, md)
	if err != nil {
		t.Fatal(err)
	}
	return action, out
}

func (f *fastpath) tryRun(frame []byte, md *xdpMD) (uint32, []byte, error) {
	opts := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256)}
	if md != nil {
		opts.Context, opts.ContextOut = *md, &xdpMD{}
	}
	action, err := f.VippinFastpath.Run(opts)
	return action, opts.DataOut, err
}

// exits returns and clears the counters.
func (f *fastpath) exits(t *testing.T) map[FastpathFastExit]uint64 {
	t.Helper()
	got := map[FastpathFastExit]uint64{}
	for e := range FastpathFastExitFAST_EXITS {
		if n := takePerCPU(t, f.FastCounters, uint32(e)); n != 0 {
			got[e] = n
		}
	}
	return got
}

// note returns and clears the one note; without one it is zero.
func (f *fastpath) note(t *testing.T) (found FastpathFastNote) {
	t.Helper()
	indices := make([]uint32, f.FastNotes.MaxEntries())
	notes := make([]FastpathFastNote, len(indices))
	var cursor ebpf.MapBatchCursor
	if _, err := f.FastNotes.BatchLookup(&cursor, indices, notes, nil); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Fatal(err)
	}
	for i, n := range notes {
		if n.Digest == 0 {
			continue
		}
		if found.Digest != 0 {
			t.Error("more than one note")
		}
		found = n
		put(t, f.FastNotes, indices[i], FastpathFastNote{})
	}
	return found
}

// pinCounts returns and clears the counters of one pin.
func (f *fastpath) pinCounts(t *testing.T, pin uint32) counts {
	t.Helper()
	return (&dataplane{DataplaneObjects: DataplaneObjects{DataplaneMaps: DataplaneMaps{PinCounters: f.PinCounters}}}).pinCounts(t, pin)
}

// fastFlow is a direction of a flow: its packets as they come, and as they leave.
type fastFlow struct {
	in, out frame
	place   uint32
	fate    FastpathFastFate
	bucket  uint64 // another digest whose bucket it is entered into, or 0
}

// fastFrame is a packet of the flow as an inside host sends it.
func fastFrame(ipv6 bool, proto layers.IPProtocol) frame {
	f := frame{
		src: netip.MustParseAddrPort("192.168.101.11:4000"), dst: netip.AddrPortFrom(remote4, 443),
		proto: proto, payload: []byte("some payload"),
	}
	if ipv6 {
		f.src, f.dst = netip.MustParseAddrPort("[2001:db8:101::11]:4000"), netip.AddrPortFrom(remote6, 443)
	}
	return f
}

// newFastFlow is a valid entry for a frame that is to leave with other ends.
func (f *fastpath) newFastFlow(in frame, src, dst netip.AddrPort, tags []tag) *fastFlow {
	out := in
	out.src, out.dst, out.tags = src, dst, tags
	fl := &fastFlow{in: in, out: out, place: fastPlace(in, fastIn)}
	fl.fate = FastpathFastFate{
		NewPorts: ports32(src, dst), Ack: 0x55667788, Hop: fastHop, Pin: pinNumber,
		Generation: fastGeneration, Until: f.tick + 1<<20,
	}
	before, after := endOctets(in.src, in.dst), endOctets(src, dst)
	fl.fate.L4Diff = onesDiff(before, after)
	if !in.ipv6() {
		fl.fate.L3Diff = onesDiff(append(addrOctets(in.src, in.dst), 63, 0), append(addrOctets(src, dst), 62, 0))
	}
	return fl
}

// snat is the entry of an inside host's flow: the source becomes the VIP.
func (f *fastpath) snat(in frame, tags []tag) *fastFlow {
	vip := vip4
	if in.ipv6() {
		vip = vip6
	}
	return f.newFastFlow(in, netip.AddrPortFrom(vip, in.src.Port()+1), in.dst, tags)
}

func fastPlace(in frame, device uint32) uint32 {
	place := device << 24
	if in.proto == layers.IPProtocolTCP {
		place |= fastTCP
	}
	if in.to != nil {
		place |= fastVirtual
	}
	if len(in.tags) > 0 {
		place |= uint32(in.tags[0].id&0xfff) << 12
		if in.tags[0].ethertype == uint16(layers.EthernetTypeQinQ) {
			place |= fast8021AD
		}
	}
	if len(in.tags) > 1 {
		place |= uint32(in.tags[1].id & 0xfff)
	}
	return place
}

func addrOctets(src, dst netip.AddrPort) []byte {
	return append(src.Addr().AsSlice(), dst.Addr().AsSlice()...)
}

func endOctets(src, dst netip.AddrPort) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(addrOctets(src, dst), src.Port()), dst.Port())
}

func ports32(src, dst netip.AddrPort) uint32 {
	return uint32(be16(src.Port())) | uint32(be16(dst.Port()))<<16
}

func addrWord(f frame) uint64 { return binary.NativeEndian.Uint64(addrOctets(f.src, f.dst)) }

// onesSum is the one's complement sum of words as they lie in memory.
func onesSum(octets []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(octets); i += 2 {
		sum += uint32(binary.NativeEndian.Uint16(octets[i:]))
	}
	if len(octets)%2 == 1 {
		sum += uint32(binary.NativeEndian.Uint16([]byte{octets[len(octets)-1], 0}))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

func onesDiff(before, after []byte) uint16 {
	sum := uint32(^onesSum(before)) + uint32(onesSum(after))
	return uint16(sum&0xffff + sum>>16)
}

// digest is fast_key.h's.
func (fl *fastFlow) digest() uint64 {
	h := fastKeys[0] + (fastKeys[1]+uint64(ports32(fl.in.src, fl.in.dst)))*(fastKeys[2]+uint64(fl.place))
	octets := addrOctets(fl.in.src, fl.in.dst)
	word := func(i int) uint64 { return fastKeys[3+i] + uint64(binary.NativeEndian.Uint32(octets[4*i:])) }
	for i := 0; i < len(octets)/4; i += 2 {
		h += word(i) * word(i+1)
	}
	return (h ^ h>>32) * 0x9e3779b97f4a7c15
}

// bucketOf is where the entry goes, and the program looks for it.
func (fl *fastFlow) bucketOf() uint32 {
	return uint32(cmp.Or(fl.bucket, fl.digest())>>32) & (fastBuckets - 1)
}

// enter writes the entry into a way of its bucket.
func (f *fastpath) enter(t *testing.T, fl *fastFlow, way int) {
	t.Helper()
	bucket := fl.bucketOf()
	if fl.in.ipv6() {
		var b FastpathFast6Bucket
		mustDo(t, f.Fast6.Lookup(bucket, &b))
		e := &b.Way[way]
		e.Ports, e.Place, e.Fate = ports32(fl.in.src, fl.in.dst), fl.place, fl.fate
		e.Src.Word, e.Dst.Word = words(fl.in.src.Addr()), words(fl.in.dst.Addr())
		e.NewSrc.Word, e.NewDst.Word = words(fl.out.src.Addr()), words(fl.out.dst.Addr())
		put(t, f.Fast6, bucket, b)
		return
	}
	var b FastpathFast4Bucket
	mustDo(t, f.Fast4.Lookup(bucket, &b))
	e := &b.Way[way]
	e.Addrs, e.NewAddrs = addrWord(fl.in), addrWord(fl.out)
	e.Ports, e.Place, e.Fate = ports32(fl.in.src, fl.in.dst), fl.place, fl.fate
	put(t, f.Fast4, bucket, b)
}

// fateOf reads the entry's fate.
func (f *fastpath) fateOf(t *testing.T, fl *fastFlow, way int) FastpathFastFate {
	t.Helper()
	bucket := fl.bucketOf()
	if fl.in.ipv6() {
		var b FastpathFast6Bucket
		mustDo(t, f.Fast6.Lookup(bucket, &b))
		return b.Way[way].Fate
	}
	var b FastpathFast4Bucket
	mustDo(t, f.Fast4.Lookup(bucket, &b))
	return b.Way[way].Fate
}

func mustDo(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// bytesOut is the frame as it must leave: built with its new ends, then sent on.
func (fl *fastFlow) bytesOut(t *testing.T) []byte {
	t.Helper()
	b := fl.out.bytes(t)
	copy(b, fastMACs[:])
	l3 := etherHeader + 4*len(fl.out.tags)
	if fl.out.ipv6() {
		b[l3+7]--
		return b
	}
	b[l3+8]--
	sumIPv4(b[l3:])
	return b
}

// sumIPv4 writes the header checksum anew.
func sumIPv4(ip []byte) {
	ip[10], ip[11] = 0, 0
	binary.NativeEndian.PutUint16(ip[10:], ^onesSum(ip[:20]))
}

// An entry of IPv4 is one cache line, one of IPv6 two, and buckets are whole ones.
func TestFastSizes(t *testing.T) {
	if n := unsafe.Sizeof(FastpathFast4Entry{}); n != 64 {
		t.Errorf("struct fast4 has %d octets, want 64", n)
	}
	if n := unsafe.Sizeof(FastpathFast6Entry{}); n != 128 {
		t.Errorf("struct fast6 has %d octets, want 128", n)
	}
}
