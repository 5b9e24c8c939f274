// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vippin/policy"
	"vippin/test/lab"
)

// Interfaces that never rest are followed all the same.
func TestFollowedWithoutAPause(t *testing.T) {
	m := setMoving(t, "storm", lab.Options{Hosts: 1, SingleRouter: true})
	m.begin(onWAN)
	m.unwarned()
	stop, stopped := make(chan struct{}), make(chan int)
	go func() {
		changes := 0
		defer func() { stopped <- changes }()
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
			verb := []string{"add", "del"}[changes%2]
			if _, err := m.RA.Run(m.ctx, "ip", "addr", verb, "203.0.113.9/32", "dev", "lo"); err == nil {
				changes++
			}
		}
	}()
	for range 10 {
		m.ip(m.RA.Node, "addr add 2001:db8:100::6/64 dev wan0 nodad")
		m.follow("wan0")
		m.ip(m.RA.Node, "addr del 2001:db8:100::6/64 dev wan0")
		m.follow("wan0")
	}
	close(stop)
	t.Logf("followed: %s, beside %d other changes", spread(m.took), <-stopped)
	m.sees(m.Hosts[0], lab.ServerWAN, vip)
}

// Many interfaces that come at once: to attach a program takes the kernel some
// 10 ms. The roles do not wait until the last one has got its own.
func TestRolesWhileManyAppear(t *testing.T) {
	t.Parallel()
	const many = 30
	m := setMoving(t, "many", lab.Options{Hosts: 1, SingleRouter: true})
	var pins, links strings.Builder
	for i := range many {
		fmt.Fprintf(&pins, "  - {vlan: %d, interface: v%d, vips: [203.0.113.%d], sources: [192.168.0.0/16]}\n", 100+i, i, i+1)
		fmt.Fprintf(&links, "link add v%d type veth peer name peer%d\n", i, i)
	}
	m.begin(onWAN + pins.String())
	m.becomes(policy.RoleMaster)
	withPrograms := func() (n int) {
		m.must(m.RA.Do(func() error {
			all, err := m.RA.Netlink().LinkList()
			for _, l := range all {
				if strings.HasPrefix(l.Attrs().Name, "v") && programsOn(l.Attrs().Index) == 2 {
					n++
				}
			}
			return err
		}))
		return n
	}
	m.blindly(func() { m.ip(m.RA.Node, links.String()) }) // so that one plan has them all
	m.must(m.await("the first programs", func() (bool, error) { return withPrograms() > 0, nil }))
	m.ip(m.RA.Node, fmt.Sprintf("addr del %s/24 dev wan0", vip.V4))
	start := time.Now()
	m.must(m.await("BACKUP in the maps", func() (bool, error) {
		role, _, err := m.plane.Role(1)
		return role == policy.RoleBackup, err
	}))
	took, n := time.Since(start), withPrograms()
	if n == many {
		t.Errorf("the role was there after %s, when each of %d interfaces had its programs", took, many)
	}
	m.must(m.await("all programs", func() (bool, error) { return withPrograms() == many, nil }))
	t.Logf("the role took %s, when %d of %d had their programs; all had them after %s", took, n, many, time.Since(start))
}

// Somebody's programs fill the hook: the pin's warning says so. It is tried
// again until there is room.
func TestAttachFailsForAWhile(t *testing.T) {
	t.Parallel()
	m := setMoving(t, "fails", lab.Options{Hosts: 1, SingleRouter: true})
	m.ip(m.RA.Node, "link del wan0")
	m.begin(onWAN)
	m.follow("wan0")
	var makeRoom func()
	m.blindly(func() {
		m.cable("wan0", wanMAC, 0)
		m.configure("wan0")
		makeRoom = m.fillEgress("wan0")
	})
	m.warned("not everything of the plan is in the kernel", "interface wan0", "attach egress program", "remove one of the others")
	m.sees(m.Hosts[0], lab.ServerWAN, own)
	makeRoom()
	m.follow("wan0")
	m.unwarned()
	m.sees(m.Hosts[0], lab.ServerWAN, vip)
}

// Somebody takes a program off an interface that is in its place. No event tells
// of that; they are looked for now and then. (Meanwhile the router itself gets
// what is sent to the VIP, and resets TCP connections.)
func TestProgramsTakenOff(t *testing.T) {
	t.Parallel()
	m := setMoving(t, "taken", lab.Options{Hosts: 1, SingleRouter: true})
	m.begin(onWAN)
	m.unwarned()
	udp := m.flow(m.Hosts[0], "udp", netip.AddrPort{}, lab.Port(lab.ServerWAN.V4, serverPort))
	t.Cleanup(func() { udp.Stop() })
	m.takeOffIngress("wan0")
	m.follow("wan0")
	m.must(m.daemon.AwaitLog(m.ctx, "programs were taken off an interface"))
	if source := m.goesOn(udp.Report)[0]; source.Addr() != vip.V4 {
		t.Errorf("the living flow comes from %s, want the VIP", source)
	}
	m.sees(m.Hosts[0], lab.ServerWAN, vip)
}

// Now and then the programs are looked for on every interface. Roles do not wait for
// that, however long it takes: here until somebody lets go of the dataplane's lock.
func TestRolesWhileProgramsAreLookedFor(t *testing.T) {
	t.Parallel()
	m := setMoving(t, "look", lab.Options{Hosts: 1, SingleRouter: true})
	m.begin(onWAN)
	m.becomes(policy.RoleMaster)
	lock, err := os.Open(m.RA.BPFFS)
	m.must(err)
	defer func() { _ = lock.Close() }()
	m.must(unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	waits := regexp.MustCompile(fmt.Sprintf(`-> FLOCK +ADVISORY +WRITE +%d `, m.daemon.Pid()))
	m.must(m.await("the daemon to look", func() (bool, error) {
		locks, err := os.ReadFile("/proc/locks")
		return waits.Match(locks), err
	}))
	m.ip(m.RA.Node, fmt.Sprintf("addr del %s/24 dev wan0", vip.V4))
	m.must(m.await("BACKUP in the maps", func() (bool, error) {
		role, _, err := m.plane.Role(1)
		return role == policy.RoleBackup, err
	}))
	m.must(lock.Close())
	m.follow("wan0")
}
