// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"vippin/loader"
	"vippin/policy"
	"vippin/test/lab"
)

// cables makes a router's further interfaces, more0 and so on, and returns pins for
// them.
func (s *scene) cables(count int) (pins string) {
	s.t.Helper()
	var commands []string
	for i := range count {
		name := fmt.Sprintf("more%d", i)
		commands = append(commands, fmt.Sprintf("link add %s type veth peer name %s-p", name, name), "link set "+name+"-p up",
			"link set "+name+" up", fmt.Sprintf("addr add 198.18.%d.3/24 dev %s", i, name), fmt.Sprintf("addr add 198.18.%d.2/24 dev %s", i, name))
		pins += fmt.Sprintf("  - {vlan: %d, interface: %s, vips: [198.18.%d.2]}\n", 1000+i, name, i)
	}
	s.ip(s.RA.Node, commands...)
	return pins
}

// A start on many interfaces takes seconds: the kernel waits for a grace period with
// each program (tcx). Roles are followed meanwhile.
func TestRoleDuringStart(t *testing.T) {
	const faces = 60
	s := setScene(t, "start", lab.Options{Hosts: 1, SingleRouter: true})
	s.ip(s.RA.Node, fmt.Sprintf("addr del %s/24 dev wan0", vip.V4))
	daemon, err := s.StartVippin(s.RA, "pins:\n  - {vlan: 2, interface: wan0, vips: [198.51.100.2]}\n"+s.cables(faces))
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
	wan := slices.IndexFunc(plan.Pins, func(pin policy.PlanPin) bool { return pin.VLAN.Outer == 2 })
	s.must(s.await("MASTER on the WAN", func() (bool, error) {
		role, _, err := plane.Role(plan.Pins[wan].ID)
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

// While many interfaces are deleted, one after the other, each plan meets one that has
// gone since it was made. That is no error to tell of.
func TestManyDeleted(t *testing.T) {
	const faces = 60
	s := setScene(t, "manydel", lab.Options{Hosts: 1, SingleRouter: true})
	config := "pins:\n" + s.cables(faces)
	daemon := s.start(s.RA, config)
	await := func(what string, masters, warnings int) {
		t.Helper()
		s.must(s.await(what, func() (bool, error) {
			status, n := s.status(s.RA), 0
			for _, pin := range status.Pins {
				if pin.Role == policy.RoleMaster {
					n++
				}
			}
			return n == masters && len(status.Warnings) == warnings, nil
		}))
	}
	await("MASTER everywhere", faces, 0)
	var deletions []string
	for i := range faces {
		deletions = append(deletions, fmt.Sprintf("link del more%d", i))
	}
	s.ip(s.RA.Node, deletions...)
	await("every pin to wait for its interface", 0, faces)
	s.cables(faces)
	await("MASTER everywhere again", faces, 0)
	if lines := s.complaints(daemon); len(lines) > 0 {
		t.Errorf("vippin complained %d times: %q", len(lines), first(lines, 5))
	}
}
