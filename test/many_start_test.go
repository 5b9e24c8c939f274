// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"vippin/loader"
	"vippin/policy"
	"vippin/test/lab"
)

// A start on many interfaces takes seconds: the kernel waits for a grace period with
// each program (tcx). Roles are followed meanwhile.
func TestRoleDuringStart(t *testing.T) {
	const faces = 60
	s := setScene(t, "start", lab.Options{Hosts: 1, SingleRouter: true})
	s.ip(s.RA.Node, fmt.Sprintf("addr del %s/24 dev wan0", vip.V4))
	more := "\n"
	for i := range faces {
		name := fmt.Sprintf("more%d", i)
		s.ip(s.RA.Node, fmt.Sprintf("link add %s type veth peer name %s-p", name, name), "link set "+name+" up",
			fmt.Sprintf("addr add 198.18.%d.3/24 dev %s", i+1, name))
		more += fmt.Sprintf("  - {vlan: %d, interface: %s, vips: [198.18.%d.2]}\n", 1000+i, name, i+1)
	}
	daemon, err := s.StartVippin(s.RA, "pins:\n  - {vlan: 2, interface: wan0, vips: [198.51.100.2]}"+more)
	s.must(err)
	attached := func() int {
		links, err := os.ReadDir(filepath.Join(s.RA.BPFFS, "links"))
		if err != nil {
			return 0
		}
		return len(links)
	}
	s.must(s.await("the first programs", func() (bool, error) { return attached() > 0, daemon.Err() }))
	s.ip(s.RA.Node, fmt.Sprintf("addr add %s/24 dev wan0", vip.V4))
	plane, err := loader.Open(s.RA.BPFFS)
	s.must(err)
	defer plane.Close()
	plan, err := plane.Planned()
	s.must(err)
	var pin uint32
	for _, p := range plan.Pins {
		if p.VLAN.Outer == 2 {
			pin = p.ID
		}
	}
	s.must(s.await("MASTER on the WAN", func() (bool, error) {
		role, _, err := plane.Role(pin)
		return role == policy.RoleMaster, err
	}))
	got := attached()
	switch {
	case plane.Tier() != "tcx":
		t.Skipf("on the tier %s no program waits for the kernel", plane.Tier())
	case got >= 2*(faces+1):
		t.Errorf("MASTER when all %d programs were attached, want before", got)
	default:
		t.Logf("MASTER when %d programs of %d were attached", got, 2*(faces+1))
	}
}
