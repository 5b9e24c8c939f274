// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vippin/loader/conntrack"
	"vippin/policy"
)

func TestCut(t *testing.T) {
	o := &output{colour: true}
	cases := []struct {
		line    string
		columns int
		want    string
	}{
		{"0123456789", 0, "0123456789"},
		{"0123456789", 10, "0123456789"},
		{"0123456789", 9, "01234567…"},
		{"äöü€", 3, "äö…"},
		{o.painted(red, "FAULT") + " x", 7, o.painted(red, "FAULT") + " x"},
		{o.painted(red, "FAULT"), 4, "\x1b[31mFAU\x1b[0m…"},
	}
	for _, c := range cases {
		if got := cut(c.line, c.columns); got != c.want {
			t.Errorf("cut %q to %d: %q, want %q", c.line, c.columns, got, c.want)
		}
	}
}

func TestWrap(t *testing.T) {
	got := wrap("  one two three four", 10)
	if want := "  one two\n    three\n    four"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := wrap("averyveryverylongword next", 10); got != "averyveryverylongword\n  next" {
		t.Errorf("%q", got)
	}
}

func TestColourOnlyWhereItCan(t *testing.T) {
	for _, c := range []struct {
		width int
		vars  map[string]string
		want  bool
	}{
		{80, nil, true},
		{0, nil, false},
		{80, map[string]string{"NO_COLOR": "1"}, false},
		{80, map[string]string{"TERM": "dumb"}, false},
	} {
		b := newRig(t)
		b.width = c.width
		if c.vars != nil {
			b.vars = c.vars
		}
		if got := b.colour(); got != c.want {
			t.Errorf("%d columns, %v: %v", c.width, c.vars, got)
		}
	}
}

// TestTerminalIsNotControlled: words from elsewhere cannot move the cursor.
func TestTerminalIsNotControlled(t *testing.T) {
	evil := "x\x1b[2J\r\ny\u009b2J"
	status := sampleStatus()
	status.Warnings = []string{evil}
	status.Node = evil
	status.Groups[0].Name, status.Groups[0].Evidence, status.Groups[0].Conflict = evil, []string{evil}, evil
	status.Pins[0].Interface, status.Pins[0].Group = evil, evil
	status.Peers[0].Name = evil
	var out lockedBuffer
	if err := showStatus(&output{w: &out}, status, testNow); err != nil {
		t.Fatal(err)
	}
	peer := samplePeers()[2]
	peer.Name, peer.Node, peer.Version, peer.State, peer.LastError, peer.ShownKey = evil, evil, evil, evil, evil, evil
	peer.Groups = []policy.PeerGroup{{Name: evil}}
	peer.Refused, peer.RefusedByPeer = map[string]uint64{evil: 1}, map[string]uint64{evil: 1}
	peer.ConnectionsRefused = map[string]uint64{evil: 1}
	if err := showPeerReports(&output{w: &out}, []policy.PeerReport{peer}, testNow); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(out.String(), "\x1b\r\u009b") {
		t.Errorf("%q", out.String())
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 1500 * time.Microsecond: "2ms", 12340 * time.Millisecond: "12.3s", 75 * time.Second: "1m15s",
		3*time.Hour + 59*time.Minute + 59*time.Second: "3h59m", 50 * time.Hour: "2d2h",
	} {
		if got := span(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

func TestDegraded(t *testing.T) {
	good := policy.Status{
		Groups: []policy.GroupStatus{{Role: policy.RoleMaster}, {Role: policy.RoleBackup}},
		Peers:  []policy.PeerStatus{{State: "up"}},
		Pins:   []policy.PinStatus{{PinState: policy.PinState{Enabled: false}}},
	}
	if degraded(good) {
		t.Error("a good state is degraded")
	}
	for name, spoil := range map[string]func(*policy.Status){
		"warning":  func(s *policy.Status) { s.Warnings = []string{"x"} },
		"conflict": func(s *policy.Status) { s.Groups = []policy.GroupStatus{{Role: policy.RoleMaster, Conflict: "x"}} },
		"fault":    func(s *policy.Status) { s.Groups = []policy.GroupStatus{{Role: policy.RoleFault}} },
		"peer":     func(s *policy.Status) { s.Peers = []policy.PeerStatus{{State: "bulk"}} },
	} {
		s := good
		spoil(&s)
		if !degraded(s) {
			t.Errorf("%s is not degraded", name)
		}
	}
}

// TestConntrackKnowsTheClient joins mappings with entries as the kernel has
// them: the replies come from the remote end to the local end.
func TestConntrackKnowsTheClient(t *testing.T) {
	addr := netip.MustParseAddr
	view := make(conntrackView)
	view.add(&conntrack.Flow{
		Orig:         conntrack.Tuple{Src: addr("192.168.101.7"), Dst: addr("192.0.2.80"), Proto: 6, SrcPort: 1234, DstPort: 443},
		Reply:        conntrack.Tuple{Src: addr("192.0.2.80"), Dst: addr("198.51.100.3"), Proto: 6, SrcPort: 443, DstPort: 40000},
		OrigCounters: &conntrack.Counters{Packets: 3, Bytes: 300}, ReplyCounters: &conntrack.Counters{Packets: 4, Bytes: 4000},
	})
	view.add(&conntrack.Flow{
		Orig:  conntrack.Tuple{Src: addr("2001:db8:a::7"), Dst: addr("2001:db8:ffff::1"), Proto: 58, ICMPType: 128, ICMPID: 99},
		Reply: conntrack.Tuple{Src: addr("2001:db8:ffff::1"), Dst: addr("2001:db8:2::3"), Proto: 58, ICMPType: 129, ICMPID: 7},
	})
	mappings := sampleMappings(1)
	tcp := view.flowStatus(mappings[0], policy.VLAN{Outer: 2}, time.Hour, alone, nil)
	if tcp.Client != "192.168.101.7:1234" || tcp.Packets == nil || *tcp.Packets != 7 || *tcp.Bytes != 4300 {
		t.Errorf("%+v", tcp)
	}
	if tcp.Age != 600 || tcp.Idle != 60 || tcp.Proto != "tcp" || tcp.Origin != "local" {
		t.Errorf("%+v", tcp)
	}
	ping := view.flowStatus(mappings[1], policy.VLAN{Outer: 2}, time.Hour, alone, nil)
	if ping.Client != "[2001:db8:a::7]:99" || ping.Packets != nil || ping.Proto != "icmpv6" {
		t.Errorf("%+v", ping)
	}
	key := policy.FlowKey{Src: policy.MakeEnd(netip.MustParseAddrPort("192.168.101.7:1234")),
		Dst: policy.MakeEnd(netip.MustParseAddrPort("192.0.2.80:443")), Proto: 6}
	fast := fastFlows{key: {Packets: 1000, Bytes: 64000, IdleS: 0.5}}
	tcp = view.flowStatus(mappings[0], policy.VLAN{Outer: 2}, time.Hour, alone, fast)
	if !tcp.Fastpath || *tcp.Packets != 1007 || *tcp.Bytes != 68300 || tcp.Idle != 0.5 {
		t.Errorf("what took the fast path is not added: %+v", tcp)
	}
	fast[key] = policy.FastpathFlow{IdleS: 600}
	if again := view.flowStatus(mappings[0], policy.VLAN{Outer: 2}, time.Hour, alone, fast); again.Idle != 60 || *again.Packets != 7 {
		t.Errorf("the stack saw it last: %+v", again)
	}
	for known, facts := range view {
		facts.packets, facts.bytes = nil, nil // without nf_conntrack_acct
		view[known] = facts
	}
	if again := view.flowStatus(mappings[0], policy.VLAN{Outer: 2}, time.Hour, alone, fast); again.Packets != nil || again.Bytes != nil || !again.Fastpath {
		t.Errorf("part of its packets is told for all: %+v", again)
	}
	mappings[0].Remote = netip.MustParseAddrPort("192.0.2.81:443")
	if other := view.flowStatus(mappings[0], policy.VLAN{}, time.Hour, alone, nil); other.Client != "" || other.Packets != nil {
		t.Errorf("another flow's client: %+v", other)
	}
}

func TestToggleStore(t *testing.T) {
	store := toggleStore{dir: filepath.Join(t.TempDir(), "state", "vippin")}
	toggles, err := store.Load()
	if err != nil || len(toggles) != 0 {
		t.Fatalf("%v, %v", toggles, err)
	}
	key := policy.PinKey{VLAN: policy.VLAN{Outer: 20}, Name: "voip"}
	if err := store.Save(toggles.With(key, false)); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(store.path())
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Save(toggles.With(key, true)); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(store.path())
	if err != nil || os.SameFile(before, after) {
		t.Errorf("the file was written in place (%v)", err)
	}
	toggles, err = store.Load()
	if err != nil || len(toggles) != 1 || !toggles[key] {
		t.Errorf("%v, %v", toggles, err)
	}
	left, err := os.ReadDir(store.dir)
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestFastpathToggleStore(t *testing.T) {
	store := toggleStore{dir: filepath.Join(t.TempDir(), "state", "vippin")}
	if err := store.SaveFastpath(nil); err != nil {
		t.Errorf("forget none: %v", err)
	}
	if toggle, err := store.LoadFastpath(); toggle != nil || err != nil {
		t.Errorf("%v, %v", toggle, err)
	}
	for _, on := range []bool{true, false, false} {
		if err := store.SaveFastpath(&on); err != nil {
			t.Fatal(err)
		}
		if toggle, err := store.LoadFastpath(); err != nil || toggle == nil || *toggle != on {
			t.Errorf("%v, %v; want %v", toggle, err, on)
		}
	}
	if err := store.SaveFastpath(nil); err != nil {
		t.Error(err)
	}
	if toggle, err := store.LoadFastpath(); toggle != nil || err != nil {
		t.Errorf("forgotten: %v, %v", toggle, err)
	}
	if err := os.WriteFile(filepath.Join(store.dir, fastpathToggleName), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if toggle, err := store.LoadFastpath(); toggle != nil || err == nil || !strings.Contains(err.Error(), "remove the file") {
		t.Errorf("damaged: %v, %v", toggle, err)
	}
}
