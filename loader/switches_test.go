// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"structs"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vippin/bpf"
	"vippin/policy"
)

// switchPin switches one by hand.
func switchPin(d *Dataplane, pin uint32, on bool) error {
	return d.Switch([]policy.PlanPin{{ID: pin, Enabled: on, EnabledBy: policy.EnabledByToggle}})
}

// history tells whether what several see of one thing that is switched on, off, on …
// can be true: each look must have found a state that was in force during the look,
// and none an earlier one than a look that had ended before.
type history struct {
	begun, done atomic.Uint64 // changes; odd ones switch on
	seen        atomic.Uint64 // of which a look has told
}

func (h *history) change(how func(on bool) error) error {
	k := h.begun.Add(1)
	err := how(k%2 == 1)
	h.done.Store(k)
	return err
}

func (h *history) look(how func() (on bool, err error)) (bool, error) {
	k := max(h.done.Load(), h.seen.Load())
	on, err := how()
	if err != nil {
		return on, err
	}
	if (k%2 == 1) != on {
		k++
	}
	if begun := h.begun.Load(); k > begun {
		return on, fmt.Errorf("on is %v, which others had found over, in change %d", on, begun)
	}
	for was := h.seen.Load(); was < k && !h.seen.CompareAndSwap(was, k); was = h.seen.Load() {
	}
	return on, nil
}

// ends are the pins of a switchLab: their switches are as far from each other as
// can be.
var ends = [2]uint32{1, maxPins - 1}

// switchLab is a router with two pins, each on an interface of its own, both off and
// MASTER.
type switchLab struct {
	d      *Dataplane
	router netns.NsHandle
	plan   policy.Plan
}

// newSwitchLab has the programs that marks tell of conntrack: test runs have marks.
func newSwitchLab(t *testing.T, opts Options) *switchLab {
	l := &switchLab{router: enterNamespace(t)}
	opts.BPFFS = testBPFFS(t)
	l.d = mustLoad(t, opts)
	for i, id := range ends {
		slot, name := uint32(i+1), fmt.Sprint("wan", i)
		plan := onePin(addVeth(t, name, name+"peer"), name, false)
		pin, face := &plan.Pins[0], &plan.Interfaces[0]
		pin.ID, pin.Slot, pin.VLAN.Outer, face.Slot = id, slot, uint16(slot), slot
		for i := range face.Sources {
			face.Sources[i].Pin = id
		}
		l.plan.Groups = plan.Groups
		l.plan.Pins, l.plan.Interfaces = append(l.plan.Pins, *pin), append(l.plan.Interfaces, *face)
		if err := l.d.SetRole(id, policy.RoleMaster, true); err != nil {
			t.Fatal(err)
		}
	}
	mustApply(t, l.d, l.plan)
	return l
}

// toggle switches both pins.
func (l *switchLab) toggle(on bool) error {
	pins := slices.Clone(l.plan.Pins)
	for i := range pins {
		pins[i].Enabled, pins[i].EnabledBy = on, policy.EnabledByToggle
	}
	return l.d.Switch(pins)
}

// rest puts both interfaces to rest, as the daemon does a while after.
func (l *switchLab) rest() error {
	now, err := l.d.content()
	if err != nil {
		return err
	}
	want := make(map[uint32]ifaceValue)
	for ifindex, iface := range now.ifaces {
		iface.Resting = 1
		want[ifindex] = iface
	}
	return l.d.putIfaces(now.ifaces, want)
}

// testSkb is the beginning of the kernel's struct __sk_buff.
type testSkb struct {
	_                       structs.HostLayout
	_, _, mark              uint32
	_                       [6]uint32
	ingressIfindex, ifindex uint32
}

// datagram is UDP, without a checksum, from 198.51.100.3:port to 203.0.113.9:443.
func datagram(port uint16) []byte {
	frame := make([]byte, 64)
	ip := frame[14:]
	frame[12] = 0x08
	ip[0], ip[8], ip[9] = 0x45, 63, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[2:], 50)
	copy(ip[12:], []byte{198, 51, 100, 3, 203, 0, 113, 9})
	binary.BigEndian.PutUint16(ip[20:], port)
	binary.BigEndian.PutUint16(ip[22:], 443)
	binary.BigEndian.PutUint16(ip[24:], 30)
	return frame
}

// begin lets a flow begin by the interface of a pin, the first or the second, and says
// whether it left with the VIP; then the flow is forgotten.
func (l *switchLab) begin(which int, port uint16) (pinned bool, err error) {
	pin := l.plan.Pins[which]
	key := newFlowKey(pin.Slot, unix.IPPROTO_UDP, netip.AddrPortFrom(netip.MustParseAddr(unique), port), netip.MustParseAddrPort("203.0.113.9:443"))
	end := publicEnd{Port: key.SelfPort}
	end.Addr.Word = addrWords(netip.MustParseAddr(vip))
	for {
		opts := ebpf.RunOptions{Data: datagram(port), DataOut: make([]byte, 256), Context: testSkb{
			mark: 0x80000000 | 0x40000000 | 0x01000000, ingressIfindex: 1, ifindex: uint32(pin.Ifindex),
		}}
		if _, err := l.d.egress.Run(&opts); err != nil {
			return false, err
		}
		source := netip.AddrFrom4([4]byte(opts.DataOut[26:30])).String()
		err := errors.Join(
			ignoreNotExist(l.d.maps.ByLocal.Delete(key)),
			ignoreNotExist(l.d.maps.ByPublic.Delete(publicKey(key, &end))))
		switch {
		case source == "0.0.0.0" && err == nil: // a signal came: older kernels do not say what became of it
			continue
		case source != vip && source != unique:
			return false, fmt.Errorf("pin %d: the flow came from %s", pin.ID, source)
		}
		return source == vip, err
	}
}

// listed says whether PinStates shows the pins on or off.
func (l *switchLab) listed() (on bool, err error) {
	rows, err := l.d.PinStates()
	if err != nil {
		return false, err
	}
	if len(rows) != 2 || rows[0].Enabled != rows[1].Enabled || rows[0].EnabledBy != rows[1].EnabledBy {
		return false, fmt.Errorf("listed are %+v", rows)
	}
	return rows[0].Enabled, nil
}

// TestSwitchAtOnce: while two pins are switched together, on and off, from rest or
// not, flows begin by the one's interface and the other's on every processor, and
// somebody lists them. None finds one pin switched and, then or later, the other not.
func TestSwitchAtOnce(t *testing.T) {
	l := newSwitchLab(t, Options{noBTF: true})
	changes := 500 // each waits for a grace period
	switch {
	case os.Getenv("VIPPIN_FULL") != "":
		changes = 5000
	case testing.Short():
		changes = 50
	}
	var h history
	var over atomic.Bool
	watch := func(name string, how func(i int) func() (bool, error)) func() error {
		return func() error {
			var found [2]int
			for i := 0; !over.Load(); i++ {
				on, err := h.look(how(i))
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				if on {
					found[1]++
				} else {
					found[0]++
				}
			}
			if t.Logf("%s: %d times off, %d times on", name, found[0], found[1]); min(found[0], found[1]) == 0 {
				return fmt.Errorf("%s saw one state only", name)
			}
			return nil
		}
	}
	ended := make(chan error)
	watchers := []func() error{watch("reader", func(int) func() (bool, error) { return l.listed })}
	for n := range 2 {
		watchers = append(watchers, watch(fmt.Sprint("packets ", n), func(i int) func() (bool, error) {
			return func() (bool, error) { return l.begin((i+n)%2, uint16(4000+n)) }
		}))
	}
	for _, watcher := range watchers {
		go func() { ended <- inNamespace(l.router, watcher) }()
	}
	for i := range changes {
		if err := h.change(l.toggle); err != nil {
			t.Error(err)
			break
		}
		if i%4 == 1 {
			if err := l.rest(); err != nil {
				t.Error(err)
			}
		}
	}
	over.Store(true)
	for range watchers {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// touched are the numbers of pins that are on or were toggled.
func touched(t *testing.T, d *Dataplane) (pins []uint32) {
	t.Helper()
	for _, pin := range mustPlanned(t, d).Pins {
		if pin.Enabled || pin.EnabledBy != policy.EnabledByConfig {
			pins = append(pins, pin.ID)
		}
	}
	return pins
}

// failsTo checks that a switch failed for what it says, and switched none.
func failsTo(t *testing.T, d *Dataplane, pins []policy.PlanPin, why ...string) {
	t.Helper()
	for i := range pins {
		pins[i].Enabled, pins[i].EnabledBy = true, policy.EnabledByToggle
	}
	err := d.Switch(pins)
	for _, want := range why {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("switch says %v, want %q", err, want)
		}
	}
	if on := touched(t, d); len(on) > 0 {
		t.Errorf("%v: switched all the same are %v", why, on)
	}
}

// TestSwitchAllOrNone: whatever stands against one of the pins, none is switched, and
// the error names it.
func TestSwitchAllOrNone(t *testing.T) {
	l := newSwitchLab(t, Options{})
	with := func(id uint32) []policy.PlanPin {
		third := l.plan.Pins[0]
		third.ID, third.VLAN.Outer = id, 9
		return append(slices.Clone(l.plan.Pins), third)
	}
	failsTo(t, l.d, with(3), "switch pin 9:", "no pin 3")
	failsTo(t, l.d, with(maxPins), "switch pin 9:", "no pin 4096")
	pin, err := l.d.pin(ends[1])
	pin.Flags |= pinRetired
	if err := errors.Join(err, l.d.maps.Pins.Put(ends[1], pin)); err != nil {
		t.Fatal(err)
	}
	failsTo(t, l.d, slices.Clone(l.plan.Pins), "switch pin 2:", "left the configuration")
}

// TestSwitchNeedsTheLiving: none is switched when the flows that live cannot be noted.
func TestSwitchNeedsTheLiving(t *testing.T) {
	l := newLab(t)
	l.serve(t)
	d := mustLoad(t, Options{BPFFS: testBPFFS(t), MaxFlows: 8})
	l.plan(t, d, false)
	l.rest(t, d, true)
	living := l.dial(t, "living", "udp4", "192.168.1.10:41001")
	mustAsk(t, living)
	for port := uint16(1); port <= 8; port++ {
		key := newFlowKey(1, unix.IPPROTO_UDP, netip.AddrPortFrom(netip.MustParseAddr(unique), port), netip.MustParseAddrPort("203.0.113.9:9"))
		if err := d.maps.Unpinned.Put(key, leftAlone{Pin: 1}); err != nil {
			t.Fatal(err)
		}
	}
	pins := mustPlanned(t, d).Pins
	failsTo(t, d, slices.Clone(pins), "switch pin 2:", "note living flows", "max_flows")
	young := l.dial(t, "young", "udp4", "192.168.1.10:41002")
	mustAsk(t, living, young)
	for _, name := range []string{"living", "young"} {
		if got := l.source(t, name).Addr().String(); got != unique {
			t.Errorf("%s came from %s", name, got)
		}
	}
}

// TestSwitchesStay: what a program or a reader has found stays as it is while others
// take its place.
func TestSwitchesStay(t *testing.T) {
	l := newSwitchLab(t, Options{})
	var held []*ebpf.Map
	for i := range 4 {
		if err := l.toggle(i%2 == 0); err != nil {
			t.Fatal(err)
		}
		m, err := l.d.openSwitches()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = m.Close() }()
		held = append(held, m)
	}
	for i, m := range held {
		var all switches
		if err := m.Lookup(uint32(0), &all); err != nil {
			t.Fatal(err)
		}
		for _, pin := range ends {
			if all.on(pin) != (i%2 == 0) || all.by(pin) != policy.EnabledByToggle {
				t.Errorf("after change %d pin %d is on: %v", i, pin, all.on(pin))
			}
		}
	}
}

// TestSwitchesTakenOver: a version that had the switches in the pins leaves them so;
// from then on they are where they are now, over restarts.
func TestSwitchesTakenOver(t *testing.T) {
	l := newSwitchLab(t, Options{})
	flags := map[uint32]bpf.DataplanePinFlags{ends[0]: pinUsed | pinEnabled | pinToggled, ends[1]: pinUsed}
	for id := range flags {
		pin, err := l.d.pin(id)
		pin.Flags = flags[id]
		if err := errors.Join(err, l.d.maps.Pins.Put(id, pin)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(l.d.dir, bpf.DataplaneMapSwitches)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(l.d.dir); err == nil {
		t.Error("opened what another version laid out")
	}
	for start := range 2 {
		d := mustLoad(t, Options{BPFFS: l.d.dir})
		plan := mustPlanned(t, d)
		if a, b := plan.Pins[0], plan.Pins[1]; !a.Enabled || a.EnabledBy != policy.EnabledByToggle || b.Enabled || b.EnabledBy != policy.EnabledByConfig {
			t.Errorf("start %d: %+v, %+v", start, a, b)
		}
	}
	d := mustLoad(t, Options{BPFFS: l.d.dir})
	if err := switchPin(d, 1, false); err != nil {
		t.Fatal(err)
	}
	if plan := mustPlanned(t, mustLoad(t, Options{BPFFS: l.d.dir})); plan.Pins[0].Enabled {
		t.Error("a later start took the switches from the pins again")
	}
}
