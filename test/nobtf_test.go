// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"vippin/policy"
	"vippin/test/lab"
)

// onNoBTF are the tests that a kernel without BTF must pass as well: whatever the
// server sees, bulk data, living flows.
var onNoBTF = []string{
	"TestServerSeesTheVIP", "TestSamePort", "TestClash", "TestFullMap", "TestUntouched", "TestNotMasqueraded",
	"TestUnpinned", "TestBackupStaysUnpinned",
	"TestBulk",
	"TestLivingFlowsAreLeftAlone", "TestRemovedPinKeepsItsFlows", "TestTupleReusedFromTimeWait",
}

// Where the kernel has no BTF, nf_tables tells the programs what conntrack knows,
// and all is as it is with BTF: the same tests run once more, with BTF hidden from
// vippin.
func TestWithoutBTF(t *testing.T) {
	if os.Getenv("VIPPIN_LAB_NO_BTF") == "1" {
		t.Skip("BTF is hidden already")
	}
	output := runAgain(t, "BTF hidden", onNoBTF, "VIPPIN_LAB_NO_BTF=1", "-test.timeout=5m")
	for line := range strings.Lines(output) {
		if strings.Contains(line, "--- SKIP") || strings.Contains(line, "without BTF") {
			t.Log(strings.TrimSpace(line))
		}
	}
}

// flushedRules is what a restart of nftables.service does with the user's rules
// in a file: everything goes, vippin's table as well, and the user's come back in
// the same step.
const flushedRules = `
flush ruleset
table inet nat {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		oifname "wan*" ip saddr 192.168.101.0/24 masquerade
		oifname "wan*" ip6 saddr 2001:db8:101::/64 masquerade
	}
}
`

// When somebody's rules take vippin's table along, it is put back within about a
// second; flows that began meanwhile keep the router's own address, and no living
// flow moves, one-way ones included.
func TestFlushedRuleset(t *testing.T) {
	t.Parallel()
	s := setScene(t, "flushed", lab.Options{SingleRouter: true, NoBTF: true})
	old := s.gather("old", 4, 4, 10000, lab.WAN.RA.V4)
	daemon := s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	if tier := s.status(s.RA).Tier; !strings.HasSuffix(tier, "+marks") {
		t.Fatalf("the tier is %q: BTF is not hidden", tier)
	}
	pinned := s.gather("pinned", 4, 4, 20000, lab.WAN.VIP4)
	all := func(crowds ...*crowd) {
		t.Helper()
		for _, c := range append(crowds, old, pinned) {
			s.unharmed(c)
		}
		if got := s.source(s.Hosts[0], "udp", netip.AddrPort{}, lab.ServerWAN.V4); got.Addr() != lab.WAN.VIP4 {
			t.Errorf("a new flow came from %s, want the VIP", got)
		}
	}
	all()

	s.must(s.RA.NFT(s.ctx, flushedRules))
	soon, cancel := context.WithTimeout(s.ctx, 5*time.Second) // half a second, but for the load of a machine that tests
	defer cancel()
	s.must(daemon.AwaitLog(soon, "it is put back"))
	s.must(lab.Await(soon, "the table", func() (bool, error) { return s.marked(), nil }))
	if warnings := strings.Join(s.status(s.RA).Warnings, "\n"); !strings.Contains(warnings, "table inet vippin was removed") {
		t.Errorf("status warns of %q", warnings)
	}
	all()

	s.must(daemon.Kill9())
	s.must(s.RA.NFT(s.ctx, flushedRules))
	meanwhile := s.gather("meanwhile", 4, 4, 30000, lab.WAN.RA.V4)
	s.unharmed(meanwhile)
	s.must(daemon.Restart())
	s.must(s.AwaitVippin(s.ctx, s.RA))
	all(meanwhile)

	s.must(daemon.Stop())
	s.must(s.RA.NFT(s.ctx, flushedRules))
	later := s.gather("later", 4, 4, 40000, lab.WAN.RA.V4)
	s.vippin(s.RA, "load", "--master")
	if !s.marked() {
		t.Error("load did not put the table back")
	}
	s.unharmed(later)
	s.unharmed(meanwhile)
	s.unharmed(old)
	s.unharmed(pinned)
	s.vippin(s.RA, "unload")
	if s.marked() {
		t.Error("unload left the table")
	}
	s.unharmed(pinned)
}

// marked tells whether the router has vippin's table.
func (s *scene) marked() bool {
	_, err := s.RA.Run(s.ctx, "nft", "list", "chain", "inet", "vippin", "postrouting")
	return err == nil
}
