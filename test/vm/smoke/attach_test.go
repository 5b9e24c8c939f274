// SPDX-License-Identifier: Apache-2.0

//go:build vmsmoke

package smoke

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// wantAttached wants the programs to be attached as the kernel's release has it, by
// tcx links from 6.6 on, by clsact filters below, and nothing else of either kind
// to be there. marks is what the tier's name ends with.
func (l *lab) wantAttached(t *testing.T, marks string) {
	t.Helper()
	want := "clsact"
	if since(t, 6, 6) {
		want = "tcx"
	}
	var status struct{ Tier string }
	said, _ := l.call("status", "-j") // it may warn, too
	if err := json.Unmarshal([]byte(said), &status); err != nil || status.Tier != want+marks {
		t.Errorf("status says %q (%v), want the tier %q", status.Tier, err, want+marks)
	}
	l.wantLinks(t, want == "tcx")
	l.wantFilters(t, want == "clsact")
	if tables := l.nft(t, "list", "tables"); strings.Contains(tables, "table inet vippin\n") != (marks != "") {
		t.Errorf("the table of marks: %q; there only without BTF", tables)
	}
}

// since tells whether the kernel is of that release or a later one.
func since(t *testing.T, major, minor int) bool {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	var has [2]int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &has[0], &has[1]); err != nil {
		t.Fatalf("read the release: %v", err)
	}
	return has[0] > major || has[0] == major && has[1] >= minor
}

// nft runs nft in the router and returns what it prints.
func (l *lab) nft(t *testing.T, args ...string) (said string) {
	t.Helper()
	l.router.must(t, func() (err error) { said, err = output("nft", args...); return err })
	return said
}

// hooks are the two places of a program, by its name.
var hooks = map[string]struct {
	tcx    ebpf.AttachType
	parent uint32
}{
	"vippin_ingress": {ebpf.AttachTCXIngress, netlink.HANDLE_MIN_INGRESS},
	"vippin_egress":  {ebpf.AttachTCXEgress, netlink.HANDLE_MIN_EGRESS},
}

// wantLinks wants one tcx link on each hook of the outside interface, or none.
func (l *lab) wantLinks(t *testing.T, wanted bool) {
	t.Helper()
	ifindex := l.router.link(t, wan).Attrs().Index
	for name, hook := range hooks {
		var found *link.QueryResult
		err := l.router.do(func() (err error) {
			found, err = link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: hook.tcx})
			return err
		})
		if !wanted {
			if err == nil {
				t.Errorf("%s: tcx holds %d programs on a kernel that has none", name, len(found.Programs))
			}
			continue
		}
		if err != nil || len(found.Programs) != 1 {
			t.Fatalf("%s: tcx holds %+v (%v), want one program", name, found, err)
		}
		if got := programName(t, found.Programs[0].ID); got != name {
			t.Errorf("tcx holds %s, want %s", got, name)
		}
		id, linked := found.Programs[0].LinkID()
		if !linked {
			t.Fatalf("%s is attached without a link", name)
		}
		held, err := link.NewFromID(id)
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
		info, err := held.Info()
		if err != nil {
			t.Fatal(err)
		}
		if tcx := info.TCX(); tcx == nil || int(tcx.Ifindex) != ifindex || uint32(tcx.AttachType) != uint32(hook.tcx) {
			t.Errorf("%s: link %d is %+v", name, id, info)
		}
	}
}

// wantFilters wants one clsact filter on each hook of the outside interface, which
// acts by itself, or no clsact at all.
func (l *lab) wantFilters(t *testing.T, wanted bool) {
	t.Helper()
	outside := l.router.link(t, wan)
	qdiscs, err := l.router.QdiscList(outside)
	if err != nil {
		t.Fatal(err)
	}
	has := false
	for _, qdisc := range qdiscs {
		has = has || qdisc.Type() == "clsact"
	}
	if has != wanted {
		t.Errorf("clsact is there: %v, want %v", has, wanted)
	}
	if !has {
		return
	}
	for name, hook := range hooks {
		filters, err := l.router.FilterList(outside, hook.parent)
		if err != nil || len(filters) != 1 {
			t.Fatalf("%s: %d filters (%v), want 1", name, len(filters), err)
		}
		filter, ok := filters[0].(*netlink.BpfFilter)
		if !ok || !filter.DirectAction || programName(t, ebpf.ProgramID(filter.Id)) != name {
			t.Errorf("%s: the filter is %+v", name, filters[0])
		}
	}
}

func programName(t *testing.T, id ebpf.ProgramID) string {
	t.Helper()
	program, err := ebpf.NewProgramFromID(id)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	info, err := program.Info()
	if err != nil {
		t.Fatal(err)
	}
	return info.Name
}

// tryExplicit: a flow that a rule translates to the router's own address by name is
// none of masquerade's, and is let alone where the programs know the difference: only
// conntrack's entry tells. It leaves from a port of its own.
func (l *lab) tryExplicit(t *testing.T, source int, want string) {
	t.Helper()
	server := families[0].server
	l.router.must(t, func() error {
		return run("nft", fmt.Sprintf(`insert rule inet smoke out oifname %q udp sport %d ip daddr %s snat ip to %s`,
			wan, source, server, families[0].unique))
	})
	f := &flow{what: "explicit SNAT"}
	l.host.must(t, func() (err error) {
		f.conn, err = net.DialUDP("udp", &net.UDPAddr{Port: source}, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(server+":"+port)))
		return err
	})
	f.reads(t)
	if seen := f.source(t); seen.Addr().String() != want {
		t.Errorf("explicit SNAT: the server sees %v, want %s", seen, want)
	}
}
