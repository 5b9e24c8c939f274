// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
)

// asker asks for TCP flows as the programs do.
func asker(t *testing.T, f *Fastpath) func(src, dst netip.AddrPort) {
	t.Helper()
	return func(src, dst netip.AddrPort) {
		t.Helper()
		code := asm.Instructions{}
		put := func(at int16, words ...uint32) {
			for i, word := range words {
				code = append(code, asm.StoreImm(asm.RFP, at+4*int16(i), int64(int32(word)), asm.Word))
			}
		}
		from, to := addrWords(src.Addr()), addrWords(dst.Addr())
		put(-40, from[:]...)
		put(-24, to[:]...)
		put(-8, uint32(swapPort(dst.Port()))<<16|uint32(swapPort(src.Port())), 0)
		code = append(code,
			asm.LoadMapPtr(asm.R1, f.maps.Asks.FD()), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -40),
			asm.Mov.Imm(asm.R3, 40), asm.Mov.Imm(asm.R4, 0), asm.FnRingbufOutput.Call(), asm.Return())
		program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: code})
		if err != nil {
			t.Fatal(err)
		}
		defer program.Close()
		if failed, _, err := program.Test(make([]byte, 64)); err != nil || failed != 0 {
			t.Fatalf("ask: %d, %v", int32(failed), err)
		}
	}
}

// TestFastLoosen: conntrack's entries of the connections that are asked for do not
// watch windows any more, and have forgotten the highest acknowledgements; others are
// as they were, and what is gone makes no trouble.
func TestFastLoosen(t *testing.T) {
	enterNamespace(t)
	nft(t, "table inet filter { chain out { type filter hook output priority 0; ct state established accept;\n}\n}")
	for _, addr := range []string{"2001:db8::1/128", "2001:db8::2/128"} {
		addAddr(t, up(t, "lo"), addr)
	}
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	f := mustFastpath(t, d, FastpathOptions{})
	ask := asker(t, f)
	conn, err := conntrack.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	follow(t, f)
	flags := func(src, dst netip.AddrPort) (orig, reply conntrack.TCPFlags) {
		t.Helper()
		flow, err := conn.Get(conntrack.Tuple{Src: src.Addr(), Dst: dst.Addr(), Proto: unix.IPPROTO_TCP, SrcPort: src.Port(), DstPort: dst.Port()})
		if err != nil || flow.TCP == nil {
			t.Fatalf("conntrack entry of %v to %v: %+v, %v", src, dst, flow, err)
		}
		return flow.TCP.OrigFlags, flow.TCP.ReplyFlags
	}
	const both = conntrack.TCPLiberal | conntrack.TCPMaxAckSet
	asked := uint64(0)
	for client, host := range map[string]string{"127.0.0.2": "127.0.0.1", "2001:db8::2": "2001:db8::1"} {
		var ends [2][2]netip.AddrPort // of two connections
		for i := range ends {
			ends[i][0], ends[i][1] = connected(t, client, host)
			if orig, reply := flags(ends[i][0], ends[i][1]); orig&conntrack.TCPLiberal != 0 || (orig|reply)&conntrack.TCPMaxAckSet == 0 {
				t.Fatalf("%s: before: %v, %v", host, orig, reply)
			}
		}
		ask(netip.AddrPortFrom(netip.MustParseAddr(host), 1), netip.AddrPortFrom(netip.MustParseAddr(host), 2)) // is not there
		ask(ends[0][0], ends[0][1])
		await(t, fmt.Sprintf("a connection to %s is made liberal", host), func() bool {
			orig, reply := flags(ends[0][0], ends[0][1])
			return orig&both == conntrack.TCPLiberal && reply&both == conntrack.TCPLiberal
		})
		if orig, reply := flags(ends[1][0], ends[1][1]); (orig|reply)&conntrack.TCPLiberal != 0 {
			t.Errorf("%s: nobody asked for this one: %v, %v", host, orig, reply)
		}
		asked++
	}
	await(t, "what was done is counted", func() bool { return f.loosened() == asked && f.follow.loosener.gone.Load() == asked })
	if state, err := f.State(); err != nil || state.Loosened != asked {
		t.Errorf("%d loosened, %v", state.Loosened, err)
	}
}

// connected makes a TCP connection that has carried something.
func connected(t *testing.T, from, host string) (client, server netip.AddrPort) {
	t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	one, err := dialer.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = one.Close() })
	other, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close() })
	for _, way := range [][2]net.Conn{{one, other}, {other, one}} {
		if _, err := way[0].Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := way[1].Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	return netip.MustParseAddrPort(one.LocalAddr().String()), netip.MustParseAddrPort(one.RemoteAddr().String())
}

// TestFastLoosenFlood: more than can wait are left for later, and nobody waits.
func TestFastLoosenFlood(t *testing.T) {
	enterNamespace(t)
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	f := mustFastpath(t, d, FastpathOptions{})
	loose, err := f.openLoosener()
	if err != nil {
		t.Fatal(err)
	}
	defer loose.close()
	ctx, cancel := context.WithCancel(context.Background())
	listened := make(chan error, 1)
	go func() { listened <- loose.listen(ctx) }() // without run
	ask := asker(t, f)
	there := netip.MustParseAddrPort("198.51.100.9:80")
	for range looseMost {
		loose.asks <- looseAsk{}
	}
	for port := range uint16(3) {
		ask(netip.AddrPortFrom(netip.MustParseAddr("198.51.100.3"), port+1), there)
	}
	await(t, "three are left out", func() bool { return loose.lost.Load() == 3 })
	cancel()
	if err := <-listened; err != nil {
		t.Error(err)
	}
}
