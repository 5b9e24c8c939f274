// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// BenchmarkFollow is what a new pinned flow costs, and its end: from the event in
// the socket's buffer to the handler, read, decoded, looked up.
func BenchmarkFollow(b *testing.B) {
	const burst = 10000
	enterNamespace(b)
	d := mustLoad(b, Options{BPFFS: testBPFFS(b), MaxFlows: 2 * burst})
	mustApply(b, d, onePin(addVeth(b, "wan0", "wan1"), "wan0", true))
	replica, err := d.NewReplica(ReplicaOptions{Sync: policy.DefaultConfig("", "").Sync})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = replica.Close() }()
	admin, err := conntrack.Dial() // what the Replica changes itself is not told
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = admin.Close() }()
	replica.SetPlan(onePin(1, "wan0", true), policy.Observed{})
	replica.SetActive(true)
	var entries []conntrack.Entry
	var refs []conntrack.Ref
	for i := range uint16(burst) {
		entries = append(entries, mappedEntry(b, d, 1024+i))
		refs = append(refs, conntrack.Ref{Orig: entries[i].Orig})
	}
	// follow runs until it has heard of every flow of the burst.
	follow := func(kind FlowEventKind) {
		ctx, cancel := context.WithCancel(context.Background())
		n := 0
		err := replica.Follow(ctx, func(e *FlowEvent) error {
			if e.Kind == kind && e.Flow.Pin.VLAN.Outer == 2 {
				if n++; n == burst {
					cancel()
				}
			}
			return nil
		})
		cancel()
		if err != nil {
			b.Fatal(err)
		}
	}
	check := func(results []error, err error) {
		if err := errors.Join(append(results, err)...); err != nil {
			b.Fatal(err)
		}
	}
	var seen, gone time.Duration
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		check(admin.Create(entries))
		b.StartTimer()
		start := processorTime(b)
		follow(FlowSeen)
		seen += processorTime(b) - start
		b.StopTimer()
		check(admin.Delete(refs))
		b.StartTimer()
		start = processorTime(b)
		follow(FlowGone)
		gone += processorTime(b) - start
	}
	b.ReportMetric(float64(seen.Nanoseconds())/float64(b.N)/burst, "cpu-ns/new")
	b.ReportMetric(float64(gone.Nanoseconds())/float64(b.N)/burst, "cpu-ns/end")
}

// processorTime is what the process has used, user and system: others may be
// busy, too.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// mappedEntry makes a mapping, and a conntrack entry to go with it.
func mappedEntry(b *testing.B, d *Dataplane, port uint16) conntrack.Entry {
	b.Helper()
	local := netip.AddrPortFrom(netip.MustParseAddr(unique), port)
	remote := netip.MustParseAddrPort("203.0.113.9:53")
	end := publicEnd{Port: swapPort(port), Pin: 1}
	end.Addr.Word = addrWords(netip.MustParseAddr(vip))
	if err := d.maps.ByLocal.Put(newFlowKey(1, unix.IPPROTO_UDP, local, remote), end); err != nil {
		b.Fatal(err)
	}
	return conntrack.Entry{
		Orig: conntrack.Tuple{
			Src: netip.MustParseAddr("192.168.1.10"), Dst: remote.Addr(), Proto: unix.IPPROTO_UDP, SrcPort: port, DstPort: remote.Port(),
		},
		NATSrc: local, Timeout: time.Hour,
	}
}
