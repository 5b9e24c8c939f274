// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// TestCollectTellsEnds: who asked hears of every flow that conntrack forgets, also
// of those without a mapping, as the inside host sent it.
func TestCollectTellsEnds(t *testing.T) {
	ns := enterNamespace(t)
	addVeth(t, "wan0", "wan1")
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	told := make(chan policy.FlowKey, 1024)
	d.TellEnds(Ends{Ended: func(flow policy.FlowKey) { told <- flow }})
	startCollect(t, d, ns, &logBuffer{})
	conn, err := conntrack.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	remote := netip.MustParseAddrPort("203.0.113.9:443")
	ping := newFlowKey(1, unix.IPPROTO_ICMP, netip.MustParseAddrPort("198.51.100.3:77"), netip.AddrPortFrom(remote.Addr(), 0))
	flow := newFlowKey(1, unix.IPPROTO_TCP, netip.MustParseAddrPort("198.51.100.3:1234"), remote)
	want := policy.FlowKey{Src: policy.MakeEnd(netip.MustParseAddrPort("192.168.1.10:1234")), Dst: policy.MakeEnd(remote), Proto: unix.IPPROTO_TCP}
	await(t, "the end of a flow is told", func() bool {
		for _, key := range []flowKey{ping, flow} {
			tracked(t, conn, key) // before it listens there are no events of it
			untrack(t, conn, key)
		}
		select {
		case got := <-told:
			if got != want {
				t.Errorf("told of %+v, want %+v", got, want)
			}
			return true
		default:
			return false
		}
	})
}
