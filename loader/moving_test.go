// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"vippin/policy"
)

// eachTier runs a test with both kinds of attachment.
func eachTier(t *testing.T, test func(t *testing.T, d *Dataplane)) {
	for tier, noTCX := range map[string]bool{tierTCX: false, tierClsact: true} {
		t.Run(tier, func(t *testing.T) {
			enterNamespace(t)
			test(t, mustLoad(t, Options{BPFFS: testBPFFS(t), noTCX: noTCX}))
		})
	}
}

// addVethAt is addVeth with an index of the caller's choice.
func addVethAt(t *testing.T, index int, name, peer string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Index = name, index
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: peer}); err != nil {
		t.Fatalf("add veth %s as number %d: %v", name, index, err)
	}
	up(t, peer)
	if got := up(t, name).Attrs().Index; got != index {
		t.Fatalf("%s has number %d, want %d", name, got, index)
	}
}

func deleteLink(t *testing.T, name string) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		t.Fatalf("delete %s: %v", name, err)
	}
}

func wantAttached(t *testing.T, d *Dataplane, ifindex int, want bool, when string) {
	t.Helper()
	if on, err := d.Attached(ifindex); err != nil || on != want {
		t.Errorf("%s attached: %v (%v), want %v", when, on, err, want)
	}
}

// absent is a plan whose only pin waits for its interface.
func absent(plan policy.Plan) policy.Plan {
	pin := plan.Pins[0]
	pin.Ifindex = 0
	plan.Pins, plan.Interfaces = []policy.PlanPin{pin}, nil
	return plan
}

// An interface is deleted and another device gets its number before the plan is
// made. Living mappings keep an interface that left the plan, but not that one.
func TestNumberOfAnotherDevice(t *testing.T) {
	eachTier(t, func(t *testing.T, d *Dataplane) {
		ifindex := addVeth(t, "wan0", "wan1")
		plan := onePin(ifindex, "wan0", true)
		mustApply(t, d, plan)
		key, _ := testMapping(t, d, 4000)
		deleteLink(t, "wan0")
		addVethAt(t, ifindex, "other0", "other1")
		mustApply(t, d, absent(plan))
		wantAttached(t, d, ifindex, false, "another device")
		now, err := d.content()
		if err != nil {
			t.Fatal(err)
		}
		if len(now.ifaces) != 0 || len(now.uniques) != 0 {
			t.Errorf("interfaces %v, unique addresses %v, want none", now.ifaces, now.uniques)
		}
		if left, err := d.attachments(); err != nil || len(left) != 0 {
			t.Errorf("attachments left: %v, %v", left, err)
		}
		var end publicEnd
		if err := d.maps.ByLocal.Lookup(key, &end); err != nil {
			t.Errorf("the mapping went with its interface: %v", err)
		}
		back := addVeth(t, "wan0", "wan1")
		mustApply(t, d, onePin(back, "wan0", true))
		wantAttached(t, d, back, true, "the interface, made again,")
		wantAttached(t, d, ifindex, false, "another device, still,")
	})
}

// A renamed interface keeps its programs while mappings live on it: the pin that
// names it waits, the flows go on.
func TestRenamedKeepsItsMappings(t *testing.T) {
	eachTier(t, func(t *testing.T, d *Dataplane) {
		ifindex := addVeth(t, "wan0", "wan1")
		plan := onePin(ifindex, "wan0", true)
		mustApply(t, d, plan)
		testMapping(t, d, 4000)
		if err := netlink.LinkSetName(up(t, "wan0"), "ext0"); err != nil {
			t.Fatal(err)
		}
		mustApply(t, d, absent(plan))
		wantAttached(t, d, ifindex, true, "the renamed interface")
		if faces := mustPlanned(t, d).Interfaces; len(faces) != 1 || faces[0].Index != ifindex || faces[0].Slot != 1 {
			t.Errorf("interfaces %+v, want the renamed one in slot 1", faces)
		}
		wantStrays := func(when string, plan policy.Plan, want ...int) {
			t.Helper()
			if strays, err := d.Strays(plan); err != nil || !slices.Equal(strays, want) {
				t.Errorf("%s: strays %v (%v), want %v", when, strays, err, want)
			}
		}
		wantStrays("in the plan", plan)
		wantStrays("kept by its mapping", absent(plan), ifindex)
		deleteLink(t, "ext0")
		mustApply(t, d, absent(plan))
		wantStrays("deleted", absent(plan))
	})
}

// Deleted and made anew with everything as it was, before anybody looked: the
// plan is the same, and the programs are missing.
func TestMadeAnewWithTheSameNumber(t *testing.T) {
	eachTier(t, func(t *testing.T, d *Dataplane) {
		ifindex := addVeth(t, "wan0", "wan1")
		plan := onePin(ifindex, "wan0", true)
		mustApply(t, d, plan)
		wantAttached(t, d, ifindex, true, "at first")
		deleteLink(t, "wan0")
		wantAttached(t, d, ifindex, false, "deleted")
		addVethAt(t, ifindex, "wan0", "wan1")
		wantAttached(t, d, ifindex, false, "made anew")
		mustApply(t, d, plan)
		wantAttached(t, d, ifindex, true, "applied again")
	})
}

// A device that is moved to another namespace takes its programs and, where it
// is free there, its number with it. Here a new device has the number.
func TestMovedToAnotherNamespace(t *testing.T) {
	eachTier(t, func(t *testing.T, d *Dataplane) {
		here, err := netns.Get()
		if err != nil {
			t.Fatal(err)
		}
		there, err := netns.New() // and enters it
		if err := errors.Join(err, netns.Set(here)); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = errors.Join(here.Close(), there.Close()) }()
		const number = 4242
		addVethAt(t, number, "wan0", "wan1")
		plan := onePin(number, "wan0", true)
		mustApply(t, d, plan)
		if err := netlink.LinkSetNsFd(up(t, "wan0"), int(there)); err != nil {
			t.Fatal(err)
		}
		addVethAt(t, number, "wan0", "wan2")
		wantAttached(t, d, number, false, "a new device of that number")
		mustApply(t, d, plan)
		wantAttached(t, d, number, true, "applied again, here")

		// And away for good: nothing of ours works on in the other namespace.
		deleteLink(t, "wan1") // and the first wan0 with it
		if err := netlink.LinkSetNsFd(up(t, "wan0"), int(there)); err != nil {
			t.Fatal(err)
		}
		mustApply(t, d, absent(plan))
		err = inNamespace(there, func() error {
			on, err := link.QueryPrograms(link.QueryOptions{Target: number, Attach: egressHook.attach})
			if err == nil && len(on.Programs) != 0 {
				err = fmt.Errorf("%v are on the interface in its new namespace", on.Programs)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// Many interfaces that come at once are not pinned all at the end: each program
// costs a grace period of the kernel.
func TestReleasedInPortions(t *testing.T) {
	enterNamespace(t)
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	const many = 10
	var plan policy.Plan
	for i := range uint32(many) {
		name := fmt.Sprintf("wan%d", i)
		one := onePin(addVeth(t, name, "peer"+name), name, true)
		one.Pins[0].ID, one.Pins[0].Slot, one.Pins[0].Name, one.Interfaces[0].Slot = i+1, i+1, name, i+1
		plan.Groups, plan.Pins, plan.Interfaces = one.Groups, append(plan.Pins, one.Pins...), append(plan.Interfaces, one.Interfaces...)
	}
	now, err := d.content()
	if err != nil {
		t.Fatal(err)
	}
	want, err := wanted(plan)
	if err != nil {
		t.Fatal(err)
	}
	done, some := make(chan error), false
	step := convergence{d: d, now: now, want: want} // without a pause
	here, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = here.Close() }()
	go func() { done <- inNamespace(here, step.run) }()
	for running := true; running; {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			running = false
		default:
		}
		uniques, err := readMap[slotAddr, uniqueState](d.maps.Uniques)
		if err != nil {
			t.Fatal(err)
		}
		ready := 0
		for _, state := range uniques {
			if state == uniqueKnown {
				ready++
			}
		}
		links, err := os.ReadDir(filepath.Join(d.dir, linksDir))
		if err != nil {
			t.Fatal(err)
		}
		some = some || ready > 0 && len(links) < 2*many
		if !running && ready != many {
			t.Errorf("%d unique addresses are ready in the end, want %d", ready, many)
		}
	}
	if !some {
		t.Error("no unique address was ready before each interface had its programs")
	}
	samePlan(t, mustPlanned(t, d), plan)
}
