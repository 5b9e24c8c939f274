// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"vippin/bpf"
	"vippin/policy"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make network namespaces and load BPF programs")
	}
}

// TestGeneratedFrames: every frame is a whole one whatever the page held
// before, with right lengths and checksums; every flow has its turn once in as
// many packets as there are flows, and is the same both ways.
func TestGeneratedFrames(t *testing.T) {
	needRoot(t)
	var programs bpf.GeneratorObjects
	if err := bpf.LoadGeneratorObjects(&programs, nil); err != nil {
		t.Fatalf("load: %v", err)
	}
	defer func() { _ = programs.Close() }()
	const flows, ports = 1100, 1000 // more flows than ports: a second remote host
	for _, family := range []string{ipv4, ipv6} {
		for _, noChecksum := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/no-checksum=%v", family, noChecksum), func(t *testing.T) {
				b := &bed{network: networks[family], way: ways[policy.BenchForward], layout: layout{family: family, noChecksum: noChecksum}}
				b.sides[insideSide].nearMAC = []byte{2, 0, 0, 0, 0, 1}
				b.sides[outsideSide].farMAC = []byte{2, 0, 0, 0, 0, 4}
				there, again := b.stream(flows, false), b.stream(flows, true)
				there.Ports, again.Ports = ports, ports
				clean := generate(t, programs, there, flows, 0x00)
				for i, frame := range generate(t, programs, there, flows, 0xff) {
					if !bytes.Equal(frame, clean[i]) {
						t.Fatalf("on another page frame %x became %x", clean[i], frame)
					}
				}
				out, back := dissect(t, clean, there), dissect(t, generate(t, programs, again, flows, 0xff), again)
				for i, o := range out {
					if o.src != back[i].dst || o.dst != back[i].src {
						t.Fatalf("packet %d goes out as %v and comes back as %v", i, o, back[i])
					}
				}
				seen := map[fiveTuple]bool{}
				remotes := map[netip.Addr]int{}
				for _, o := range out {
					seen[o] = true
					remotes[o.dst.Addr()]++
				}
				if len(seen) != flows || len(remotes) != 2 || remotes[b.remotes] != ports {
					t.Errorf("%d flows to %v, want %d to two hosts, %d of them to the first", len(seen), remotes, flows, ports)
				}
			})
		}
	}
}

type fiveTuple struct{ src, dst netip.AddrPort }

// generate runs the program on pages that are full of something, without
// sending anything.
func generate(t *testing.T, programs bpf.GeneratorObjects, s bpf.GeneratorBenchStream, packets int, dirt byte) (frames [][]byte) {
	t.Helper()
	if err := programs.Stream.Set(s); err != nil {
		t.Fatal(err)
	}
	if err := programs.Progress.Set(bpf.GeneratorBenchProgress{}); err != nil {
		t.Fatal(err)
	}
	for i := range packets {
		page, out := make([]byte, 70), make([]byte, 70)
		for j := range headers(s) { // nobody writes into the payload
			page[j] = dirt
		}
		verdict, err := programs.Generate.Run(&ebpf.RunOptions{Data: page, DataOut: out})
		if err != nil || verdict != 3 { // XDP_TX
			t.Fatalf("packet %d: verdict %d, %v", i, verdict, err)
		}
		frames = append(frames, out)
	}
	var p bpf.GeneratorBenchProgress
	if err := programs.Progress.Get(&p); err != nil || p.Packets != uint64(packets) {
		t.Errorf("the generator counts %d packets, %v, want %d", p.Packets, err, packets)
	}
	return frames
}

// headers is how many octets go before the payload.
func headers(s bpf.GeneratorBenchStream) int {
	if s.Ipv6 != 0 {
		return 14 + 40 + 8
	}
	return 14 + 20 + 8
}

// dissect checks lengths and checksums of frames and tells their ends.
func dissect(t *testing.T, frames [][]byte, s bpf.GeneratorBenchStream) (list []fiveTuple) {
	t.Helper()
	for _, frame := range frames {
		packet := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
		eth, _ := packet.LinkLayer().(*layers.Ethernet)
		udp, _ := packet.TransportLayer().(*layers.UDP)
		if eth == nil || udp == nil || packet.NetworkLayer() == nil {
			t.Fatalf("not UDP over IP: %x", frame)
		}
		if string(eth.DstMAC) != string(s.ToMac[:]) || string(eth.SrcMAC) != string(s.FromMac[:]) {
			t.Fatalf("frame to %v from %v", eth.DstMAC, eth.SrcMAC)
		}
		if err := udp.SetNetworkLayerForChecksum(packet.NetworkLayer()); err != nil {
			t.Fatal(err)
		}
		if int(udp.Length) != 8+len(udp.Payload) || len(udp.Payload) != len(frame)-headers(s) {
			t.Fatalf("wrong lengths: %x", frame)
		}
		if (udp.Checksum == 0) != (s.NoChecksum != 0) {
			t.Fatalf("UDP checksum %#x", udp.Checksum)
		}
		if err, wrong := packet.VerifyChecksums(); err != nil || len(wrong) > 0 {
			t.Fatalf("checksums: %v, %v: %x", err, wrong, frame)
		}
		flow := packet.NetworkLayer().NetworkFlow()
		src, _ := netip.AddrFromSlice(flow.Src().Raw())
		dst, _ := netip.AddrFromSlice(flow.Dst().Raw())
		list = append(list, fiveTuple{netip.AddrPortFrom(src, uint16(udp.SrcPort)), netip.AddrPortFrom(dst, uint16(udp.DstPort))})
	}
	return list
}

func TestStride(t *testing.T) {
	for _, flows := range []int{1, 2, 3, 7, 10, 100, 999, 1000, 10_000, 200_000} {
		seen, at := make([]bool, flows), 0
		step := stride(flows)
		for range flows {
			seen[at] = true
			at = (at + step) % flows
		}
		for i, s := range seen {
			if !s {
				t.Errorf("stride %d of %d flows leaves out flow %d", step, flows, i)
				break
			}
		}
	}
}
