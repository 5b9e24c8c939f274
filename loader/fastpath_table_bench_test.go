// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"vippin/policy"
)

// benchTables is a fast path with a table full of IPv4 flows in one place, or two.
func benchTables(b *testing.B, flows int) (*Fastpath, []policy.FlowKey) {
	b.Helper()
	enterNamespace(b)
	d := mustLoad(b, Options{BPFFS: testBPFFS(b)})
	f, err := d.NewFastpath(FastpathOptions{Flows: uint32(flows)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = f.Close() })
	if err := f.SetOpen(true); err != nil {
		b.Fatal(err)
	}
	f.tables.state.Mask4, f.tables.state.Mask6 = uint32(len(f.tables.four)-1), uint32(len(f.tables.six)-1)
	now, err := f.tables.ticks.now()
	if err != nil {
		b.Fatal(err)
	}
	remote := policy.MakeEnd(netip.MustParseAddrPort("203.0.113.9:443"))
	public := policy.MakeEnd(netip.MustParseAddrPort("198.51.100.2:1"))
	var keys []policy.FlowKey
	for i := range flows {
		src := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 0xc6120000+uint32(i)>>6)))
		key := policy.FlowKey{Src: policy.MakeEnd(netip.AddrPortFrom(src, uint16(1024+i&63))), Dst: remote, Proto: unix.IPPROTO_UDP}
		keys = append(keys, key)
		at := entryPlace(&key, 1<<24)
		addrs, ports := fastAddrs4(&key), fastPorts(&key)
		out := policy.FlowKey{Src: public, Dst: remote}
		bucket := &f.tables.four[fast4Index(&f.tables.state.Keys, addrs, ports, at, f.tables.state.Mask4)]
		e := &bucket.Way[i&1]
		e.Addrs, e.Ports, e.Place, e.NewAddrs = addrs, ports, at, fastAddrs4(&out)
		e.Fate = fastFate{NewPorts: fastPorts(&out), Pin: 1, Generation: f.tables.generation(), Until: now + 1<<20, PacketsSeen: 1<<16 | uint64(uint16(now))}
	}
	for ifindex, place := range []uint32{1 << 24, 2 << 24} {
		if err := f.maps.Places.Put(uint32(ifindex+1), fastPlaceValue{Number: place}); err != nil {
			b.Fatal(err)
		}
	}
	b.ResetTimer()
	return f, keys
}

// BenchmarkFastValid counts entries, each of a million flows.
func BenchmarkFastValid(b *testing.B) {
	f, _ := benchTables(b, 1<<20)
	for b.Loop() {
		if _, err := f.tables.valid(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFastFlows sums up a million flows.
func BenchmarkFastFlows(b *testing.B) {
	f, _ := benchTables(b, 1<<20)
	for b.Loop() {
		if _, err := f.Flows(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFastForget forgets one flow of a million at a time.
func BenchmarkFastForget(b *testing.B) {
	f, keys := benchTables(b, 1<<20)
	for i := 0; b.Loop(); i++ {
		if err := f.forget(keys[i*7919&(len(keys)-1):][:1]); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFastBump makes the next generation.
func BenchmarkFastBump(b *testing.B) {
	f, _ := benchTables(b, 1024)
	for b.Loop() {
		f.tables.bump()
	}
}
