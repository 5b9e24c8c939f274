// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"structs"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// What BPF_PROG_TEST_RUN gives a tc program: an skb on loopback (ifindex 1),
// without conntrack. Nothing is ever sent.
const (
	loopback     = 1
	slot         = 1
	pinNumber    = 1
	groupNumber  = 1
	actUnspec    = uint32(0xffffffff) // TC_ACT_UNSPEC
	roleBackup   = 1                  // policy.RoleBackup
	roleMaster   = 2                  // policy.RoleMaster
	etherHeader  = 14
	checksumNone = 0

	// From Linux 6.16, and in later stable kernels (6.1.192, 6.12.95): skb->csum
	// is filled in before the program (as by a network card that delivers
	// CHECKSUM_COMPLETE) and must be right after it.
	checksumComplete = 1 << 2 // BPF_F_TEST_SKB_CHECKSUM_COMPLETE
)

// The router under test and whom it speaks with.
var (
	unique4 = netip.MustParseAddr("198.51.100.3")
	vip4    = netip.MustParseAddr("198.51.100.2")
	remote4 = netip.MustParseAddr("203.0.113.80")
	unique6 = netip.MustParseAddr("2001:db8:1::3")
	vip6    = netip.MustParseAddr("2001:db8:1::2")
	remote6 = netip.MustParseAddr("2001:db8:2::80")
)

// skBuff is the kernel's struct __sk_buff. Test runs take mark, priority,
// ingress_ifindex, ifindex, cb, tstamp, wire_len and the gso fields from it.
type skBuff struct {
	_              structs.HostLayout
	Len            uint32
	PktType        uint32
	Mark           uint32
	QueueMapping   uint32
	Protocol       uint32
	VlanPresent    uint32
	VlanTCI        uint32
	VlanProto      uint32
	Priority       uint32
	IngressIfindex uint32
	Ifindex        uint32
	TCIndex        uint32
	CB             [5]uint32
	Hash           uint32
	TCClassid      uint32
	Data           uint32
	DataEnd        uint32
	NapiID         uint32
	Family         uint32
	RemoteIP4      uint32
	LocalIP4       uint32
	RemoteIP6      [4]uint32
	LocalIP6       [4]uint32
	RemotePort     uint32
	LocalPort      uint32
	DataMeta       uint32
	FlowKeys       uint64
	Tstamp         uint64
	WireLen        uint32
	GsoSegs        uint32
	Sk             uint64
	GsoSize        uint32
	TstampType     uint32
	Hwtstamp       uint64
}

// dataplane is the loaded programs with maps of their own: nothing is pinned
// and nothing attached.
type dataplane struct {
	DataplaneObjects
	ring  *ringbuf.Reader
	epoch uint64
	on    bool // the pin's switch
}

// shared is loaded by the first test: the verifier takes a second and more.
var shared *dataplane

// newDataplane returns the programs with one pin on loopback: master, enabled,
// with the VIPs and unique addresses above, and nothing else in any map.
func newDataplane(t *testing.T) *dataplane {
	t.Helper()
	if shared == nil {
		shared = loadDataplane(t, func(*ebpf.CollectionSpec) {})
	}
	shared.reset(t)
	return shared
}

// loadDataplane loads the programs with empty maps; adjust may change their sizes.
func loadDataplane(t *testing.T, adjust func(*ebpf.CollectionSpec)) *dataplane {
	t.Helper()
	return loadObject(t, LoadDataplane, adjust)
}

// loadObject is loadDataplane for either object: their maps are the same.
func loadObject(t *testing.T, load func() (*ebpf.CollectionSpec, error), adjust func(*ebpf.CollectionSpec)) *dataplane {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("loading BPF programs needs root")
	}
	spec, err := load()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	for _, name := range []string{DataplaneMapByLocal, DataplaneMapByPublic, DataplaneMapUnpinned} {
		spec.Maps[name].MaxEntries = 64
	}
	adjust(spec)
	d := &dataplane{}
	if err := spec.LoadAndAssign(&d.DataplaneObjects, nil); err != nil {
		t.Fatalf("load programs: %+v", err)
	}
	if d.ring, err = ringbuf.NewReader(d.Adverts); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *dataplane) close(t *testing.T) {
	t.Helper()
	if err := errors.Join(d.ring.Close(), d.Close()); err != nil {
		t.Error(err)
	}
}

// reset leaves one pin of one group on loopback.
func (d *dataplane) reset(t *testing.T) {
	t.Helper()
	clearMap[uint32](t, d.Ifaces)
	clearMap[DataplaneVridKey](t, d.Vrids)
	clearMap[DataplaneSlotAddr](t, d.Vips)
	clearMap[DataplaneSlotAddr](t, d.Uniques)
	clearMap[DataplaneFlowKey](t, d.Unpinned)
	d.unmapFlows(t)
	put(t, d.Settings, uint32(0), DataplaneSettings{})
	put(t, d.Hold, uint32(0), DataplaneHold{})
	put(t, d.Heartbeat, uint32(0), uint64(0))
	put(t, d.Passages, uint32(pinNumber), DataplanePassage{})
	for group := range uint32(4) {
		put(t, d.OwnAdverts, group, DataplaneOwnAdvert{})
	}
	d.forget(t)
	d.records(t)

	put(t, d.Ifaces, uint32(loopback), DataplaneIface{Slot: slot, HasL2: 1})
	pin := DataplanePin{Slot: slot, Group: groupNumber, Ifindex: loopback, Flags: DataplanePinFlagsPIN_USED}
	pin.Vip4.Word = words(vip4)
	pin.Vip6.Word = words(vip6)
	pin.Unique4.Word, pin.Unique6.Word = words(unique4), words(unique6)
	put(t, d.Pins, uint32(pinNumber), pin)
	d.setSwitch(t, true)
	d.setRole(t, roleMaster)
	put(t, d.Vips, slotAddr(vip4), DataplaneVip{Pin: pinNumber})
	put(t, d.Vips, slotAddr(vip6), DataplaneVip{Pin: pinNumber, Order: 1})
	put(t, d.Uniques, slotAddr(unique4), uint8(1))
	put(t, d.Uniques, slotAddr(unique6), uint8(1))
}

func (d *dataplane) setRole(t *testing.T, role uint32) {
	t.Helper()
	put(t, d.Roles, uint32(pinNumber), DataplaneRole{Role: role, Fixed: 1})
}

// result is everything a run of a program can change.
type result struct {
	action uint32
	frame  []byte
	skb    skBuff
}

// run passes one frame through a program. The test fails when the kernel finds
// skb->csum wrong afterwards. A kernel that cannot look runs the program
// without: only what is named after checksumComplete is skipped there.
func run(t *testing.T, prog *ebpf.Program, frame []byte, skb skBuff, flags uint32) result {
	t.Helper()
	if flags == checksumComplete && !canCheckSums(t, prog) {
		flags = checksumNone
	}
	res, err := tryRun(prog, frame, skb, flags)
	if errors.Is(err, unix.EBADMSG) {
		t.Fatalf("skb->csum (CHECKSUM_COMPLETE) is wrong behind the program")
	}
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// canCheckSums tries whether the kernel knows checksumComplete: from 6.16 it must.
func canCheckSums(t *testing.T, prog *ebpf.Program) bool {
	t.Helper()
	arp := append(make([]byte, 12, 60), 0x08, 0x06)
	_, err := tryRun(prog, arp[:60], skBuff{}, checksumComplete)
	if err == nil {
		return true
	}
	if !errors.Is(err, unix.EINVAL) {
		t.Fatal(err)
	}
	if v, err := features.LinuxVersionCode(); err != nil || v >= 6<<16|16<<8 {
		t.Fatalf("kernel %#x refuses BPF_F_TEST_SKB_CHECKSUM_COMPLETE (%v)", v, err)
	}
	return false
}

func tryRun(prog *ebpf.Program, frame []byte, skb skBuff, flags uint32) (result, error) {
	if skb.Ifindex == 0 {
		skb.Ifindex = loopback
	}
	res := result{}
	opts := &ebpf.RunOptions{
		Data:       frame,
		DataOut:    make([]byte, len(frame)+256),
		Context:    skb,
		ContextOut: &res.skb,
		Flags:      flags,
	}
	var err error
	res.action, err = prog.Run(opts)
	res.frame = opts.DataOut
	return res, err
}

// counts is what counters of a pin hold; those missing hold 0.
type counts map[DataplanePinCounter]uint64

// pinCounts returns and clears the counters of one pin, summed over CPUs.
func (d *dataplane) pinCounts(t *testing.T, pin uint32) counts {
	t.Helper()
	const n = uint32(DataplanePinCounterPIN_COUNTERS)
	got := counts{}
	for c := range n {
		if v := takePerCPU(t, d.PinCounters, pin*n+c); v != 0 {
			got[DataplanePinCounter(c)] = v
		}
	}
	return got
}

// vrrpCounts returns and clears the VRRP counters, summed over CPUs.
func (d *dataplane) vrrpCounts(t *testing.T) map[DataplaneVrrpCounter]uint64 {
	t.Helper()
	got := map[DataplaneVrrpCounter]uint64{}
	for c := range DataplaneVrrpCounterVRRP_COUNTERS {
		if v := takePerCPU(t, d.VrrpCounters, uint32(c)); v != 0 {
			got[c] = v
		}
	}
	return got
}

func takePerCPU(t *testing.T, m *ebpf.Map, key uint32) (sum uint64) {
	t.Helper()
	var values []uint64
	if err := m.Lookup(key, &values); err != nil {
		t.Fatal(err)
	}
	for _, v := range values {
		sum += v
	}
	if sum != 0 {
		put(t, m, key, make([]uint64, len(values)))
	}
	return sum
}

// record is one entry of the advert ring buffer.
type record struct {
	DataplaneAdvert
	payload []byte
}

// records drains the ring buffer.
func (d *dataplane) records(t *testing.T) (all []record) {
	t.Helper()
	d.ring.SetDeadline(time.Now().Add(-time.Second))
	for {
		raw, err := d.ring.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		r := record{}
		head := binary.Size(r.DataplaneAdvert)
		if len(raw.RawSample) < head {
			t.Fatalf("record of %d octets, want at least %d", len(raw.RawSample), head)
		}
		if _, err := binary.Decode(raw.RawSample, binary.NativeEndian, &r.DataplaneAdvert); err != nil {
			t.Fatal(err)
		}
		r.payload = raw.RawSample[head:]
		all = append(all, r)
	}
}

// clearMap removes every entry of a hash map.
func clearMap[K any](t *testing.T, m *ebpf.Map) {
	t.Helper()
	var key K
	for m.NextKey(nil, &key) == nil {
		if err := m.Delete(key); err != nil {
			t.Fatal(err)
		}
	}
}

func put(t *testing.T, m *ebpf.Map, key, value any) {
	t.Helper()
	if err := m.Put(key, value); err != nil {
		t.Fatalf("put into %v: %v", m, err)
	}
}

// words is an address as struct addr holds it: IPv4 as ::ffff:a.b.c.d.
func words(a netip.Addr) (w [4]uint32) {
	b := a.As16()
	for i := range w {
		w[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return w
}

// be16 is a port as a __be16 reads on this machine.
func be16(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

func slotAddr(a netip.Addr) (k DataplaneSlotAddr) {
	k.Slot = slot
	k.Addr.Word = words(a)
	return k
}

// coarseNow is bpf_ktime_get_coarse_ns.
func coarseNow(t *testing.T) uint64 {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil {
		t.Fatal(err)
	}
	return uint64(ts.Nano())
}
