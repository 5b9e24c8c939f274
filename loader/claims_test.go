// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"encoding/hex"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"vippin/policy"
)

// TestClaims: somebody else has our VIPs. The prober's question of either
// family is answered, the answer reaches user space as a claim with his MAC,
// and reading ends with its context.
func TestClaims(t *testing.T) {
	vips := addrs("198.51.100.2", "2001:db8:100::2", "fe80::2")
	ns := enterNamespace(t)
	other := (&lab{}).side(t, ns, "wan0", "198.51.100.3/24", "198.51.100.2/24", "2001:db8:100::2/64", "fe80::2/64")
	addAddr(t, up(t, "wan0"), "198.51.100.2/32") // as keepalived would here
	awaitAddrs(t, "wan0")
	ours, theirs := linkNamed(t, "wan0"), policy.Link{}
	if err := inNamespace(other, func() error {
		theirs = linkNamed(t, "peer")
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	plan := onePin(ours.Index, "wan0", true)
	plan.Pins[0].VIPs, plan.Interfaces[0].VIPs = vips, vips
	mustApply(t, d, plan)

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	claims, done := make(chan policy.ClaimSeen, 1000), make(chan error, 1)
	go func() { done <- d.Claims(ctx, func(c policy.ClaimSeen) error { claims <- c; return nil }) }()
	prober, err := NewProber()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := prober.Close(); err != nil {
			t.Error(err)
		}
	}()
	from := linkLocal(t, ours)
	before := monotonic()
	for _, vip := range vips {
		await(t, "an answer about "+vip.String(), func() bool {
			if err := prober.Probe(policy.Probe{Ifindex: ours.Index, VIP: vip, MAC: ours.MAC, From: from}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(50 * time.Millisecond) // IPv6 answers once it has made sure of its address
			for len(claims) > 0 {
				c := <-claims
				if c.Kind == policy.ClaimAsks || c.MAC != theirs.MAC || c.Ifindex != ours.Index || !slices.Contains(vips, c.VIP) ||
					c.Time < before || c.Time > before+patience {
					t.Errorf("claim %+v, want one by %s", c, theirs.MAC)
				}
				if c.VIP == vip && c.Kind == policy.ClaimAnswers {
					return true
				}
			}
			return false
		})
	}
	// What the other asks is seen as a question.
	if err := inNamespace(other, func() error {
		prober, err := NewProber()
		if err != nil {
			return err
		}
		defer func() { _ = prober.Close() }()
		return prober.Probe(policy.Probe{Ifindex: theirs.Index, VIP: vips[0], MAC: theirs.MAC})
	}); err != nil {
		t.Fatal(err)
	}
	for asked := false; !asked; {
		select {
		case c := <-claims:
			asked = c.Kind == policy.ClaimAsks && c.MAC == theirs.MAC && c.VIP == vips[0]
		case <-time.After(patience):
			t.Fatal("the question was not told")
		}
	}
	counters, err := d.VRRPCounters()
	if err != nil || counters["claims"] < 4 || counters["ring_full"] != 0 {
		t.Errorf("counters %v, %v", counters, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("claims ended with %v", err)
	}
}

func linkNamed(t *testing.T, name string) policy.Link {
	t.Helper()
	seen, err := Observe()
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range seen.Links {
		if link.Name == name && link.MAC != (policy.MAC{}) {
			return link
		}
	}
	t.Fatalf("no %s with a MAC in %+v", name, seen)
	return policy.Link{}
}

func linkLocal(t *testing.T, link policy.Link) netip.Addr {
	t.Helper()
	for _, a := range link.Addrs {
		if a.Prefix.Addr().Is6() && a.Prefix.Addr().IsLinkLocalUnicast() {
			return a.Prefix.Addr()
		}
	}
	t.Fatalf("no link-local address in %+v", link)
	return netip.Addr{}
}

// TestProbeOctets compares the questions with octets worked out by hand from
// RFC 826 and RFC 5227, and RFC 8200 and RFC 4861.
func TestProbeOctets(t *testing.T) {
	probe := policy.Probe{VIP: netip.MustParseAddr("198.51.100.2"), MAC: policy.MAC{2, 0, 0, 0, 0, 3}}
	to, protocol, got, err := ask(probe)
	const arpProbe = "0001" + "0800" + "06" + "04" + "0001" + "020000000003" + "00000000" + "000000000000" + "c6336402"
	if err != nil || hex.EncodeToString(got) != arpProbe || protocol != 0x0806 || to.String() != "ff:ff:ff:ff:ff:ff" {
		t.Errorf("%s %#x %x, %v", to, protocol, got, err)
	}
	probe.VIP, probe.From = netip.MustParseAddr("2001:db8:100::2"), netip.MustParseAddr("fe80::3")
	to, protocol, got, err = ask(probe)
	const solicitation = "60000000" + "0020" + "3a" + "ff" + "fe800000000000000000000000000003" + "ff0200000000000000000001ff000002" +
		"87" + "00" + "SUMS" + "00000000" + "20010db8010000000000000000000002" + "01" + "01" + "020000000003"
	text := hex.EncodeToString(got)
	if err != nil || len(got) != 72 || text[:84]+"SUMS"+text[88:] != solicitation || protocol != 0x86dd || to.String() != "33:33:ff:00:00:02" {
		t.Errorf("%s %#x %s, %v", to, protocol, text, err)
	}
	// RFC 4443 section 2.3: with the pseudo-header, all sums up to ffff.
	sum := uint32(len(got)-40) + 58
	for i := 8; i < len(got); i += 2 {
		sum += uint32(got[i])<<8 | uint32(got[i+1])
	}
	if sum = sum>>16 + sum&0xffff; sum != 0xffff {
		t.Errorf("checksum: %#x", sum)
	}
	for _, from := range []netip.Addr{{}, netip.MustParseAddr("198.51.100.3")} {
		probe.From = from
		if _, _, _, err := ask(probe); err == nil {
			t.Errorf("asks from %v", from)
		}
	}
}

// What cannot be asked is an error that names the VIP, and does not block.
func TestProbeFails(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to open a packet socket")
	}
	enterNamespace(t)
	prober, err := NewProber()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = prober.Close() }()
	err = prober.Probe(policy.Probe{Ifindex: 77, VIP: netip.MustParseAddr("198.51.100.2")})
	if err == nil {
		t.Fatal("asked on an interface that is not there")
	}
	contains(t, err.Error(), "ask on interface 77 who has 198.51.100.2")
}

func TestMACOf(t *testing.T) {
	if got := macOf([]byte{2, 0, 0, 0, 0, 3}); got != (policy.MAC{2, 0, 0, 0, 0, 3}) {
		t.Error(got)
	}
	for _, other := range [][]byte{nil, make([]byte, 20), {10, 0, 0, 1}} { // no address, InfiniBand's, a tunnel's
		if got := macOf(other); got != (policy.MAC{}) {
			t.Errorf("%x gives %s", other, got)
		}
	}
}
