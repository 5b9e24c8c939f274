// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// BenchmarkInstall measures what 100,000 flows cost a peer: processor time of this
// thread and the kernel's for it, per flow.
func BenchmarkInstall(b *testing.B) {
	const flows = 100_000
	for b.Loop() {
		inBenchNamespace(b, func(r *Replica) {
			list := manyFlows(flows)
			perFlow(b, "new", flows, func() { mustBe(b, r, list, Installed) })
			for i := range list {
				list[i].Known = true
			}
			perFlow(b, "update", flows, func() { mustBe(b, r, list, Updated) })
			for i := range list {
				list[i].Known = false
			}
			perFlow(b, "adopt", flows, func() { mustBe(b, r, list, Adopted) })
			keys := make([]policy.FlowKey, flows)
			removals := make([]Removal, flows)
			for i, one := range list {
				keys[i] = one.Flow.FlowKey
				removals[i] = Removal{Key: keys[i], To: one.Flow.To, Pin: one.Flow.Pin}
			}
			perFlow(b, "refresh", flows, func() {
				if err := r.Refresh(keys, func(i int) { b.Errorf("flow %d is missing", i) }); err != nil {
					b.Fatal(err)
				}
			})
			perFlow(b, "remove", flows, func() {
				if _, err := r.Remove(removals); err != nil {
					b.Fatal(err)
				}
			})
		})
	}
}

// mustBe installs in batches, as they come from a peer.
func mustBe(b *testing.B, r *Replica, list []Installation, want Outcome) {
	for start := 0; start < len(list); start += installBatch {
		outcomes, err := r.Install(list[start:min(start+installBatch, len(list))])
		if err != nil {
			b.Fatal(err)
		}
		for _, got := range outcomes {
			if got != want {
				b.Fatalf("%v, want %v", got, want)
			}
		}
	}
}

func perFlow(b *testing.B, what string, flows int, do func()) {
	var before, after unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &before)
	do()
	_ = unix.Getrusage(unix.RUSAGE_SELF, &after)
	used := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	b.ReportMetric(float64(used)/float64(flows)/1000, "µs-"+what)
}

func manyFlows(n int) []Installation {
	flows, list := make([]policy.Flow, n), make([]Installation, n)
	for i := range flows {
		src := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		to := netip.MustParseAddr(vip)
		remote := policy.MakeEnd(netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(9 + i/60000)}), 53))
		flows[i] = policy.Flow{
			FlowKey: policy.FlowKey{Src: policy.MakeEnd(netip.AddrPortFrom(src, 4000)), Dst: remote, Proto: unix.IPPROTO_UDP},
			From:    remote, To: policy.MakeEnd(netip.AddrPortFrom(to, uint16(2000+i%60000))),
			Pin: policy.PinName{VLAN: policy.VLAN{Outer: 2}, VIP: to}, Group: "core", Timeout: 30 * time.Second,
		}
		if i%2 == 1 {
			flows[i].Proto, flows[i].TCPState = unix.IPPROTO_TCP, uint8(conntrack.TCPEstablished)
		}
		list[i].Flow = &flows[i]
	}
	return list
}

func inBenchNamespace(b *testing.B, do func(r *Replica)) {
	enterNamespace(b)
	ifindex := addVeth(b, "wan0", "wan1")
	d := mustLoad(b, Options{BPFFS: testBPFFS(b), MaxFlows: 262144})
	plan := onePin(ifindex, "wan0", true)
	mustApply(b, d, plan)
	r, err := d.NewReplica(ReplicaOptions{Sync: policy.DefaultConfig("", "").Sync})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	r.SetPlan(plan, policy.Observed{})
	do(r)
}
