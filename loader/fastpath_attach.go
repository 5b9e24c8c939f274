// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"vippin/bpf"
	"vippin/policy"
)

// drain is how long a packet that XDP had decided on may take to its device.
const drain = 20 * time.Millisecond

type (
	fastDeviceValue = bpf.FastpathFastDevice
	fastPlaceValue  = bpf.FastpathFastPlace
)

// attach puts the programs on the interfaces that are named, and writes down for
// the programs which of them take part. What is there and is to go is closed
// first: no packet that was rewritten must find its way out gone.
func (f *Fastpath) attach(scene fastScene) ([]policy.FastpathDevice, error) {
	if err := os.MkdirAll(filepath.Join(f.plane.dir, fastDir), 0o700); err != nil {
		return nil, fmt.Errorf("attach the fast path: %w", err)
	}
	if err := f.takeLease(); err != nil {
		return nil, fmt.Errorf("attach the fast path: %w", err)
	}
	devices := scene.judge(f.named, f.opts.Force)
	for _, device := range devices {
		if err := f.attachDevice(device); err != nil {
			return nil, fmt.Errorf("attach the fast path to %s: %w", device.Interface, err)
		}
	}
	judgeTargets(devices, f.features)
	f.judgeRefusals(devices)
	refuseExcess(devices, int(f.maps.Out.MaxEntries())-1)
	if err := f.retire(devices); err != nil {
		return nil, fmt.Errorf("detach the fast path: %w", err)
	}
	f.meetRules(&scene, devices)
	if err := f.enter(&scene, devices); err != nil {
		return nil, fmt.Errorf("attach the fast path: %w", err)
	}
	f.tell(devices)
	f.shown = reports(devices)
	return f.shown, nil
}

// attachDevice attaches both programs, or leaves them where they are. A device
// that is refused for now keeps them: attaching natively again would take its
// link down again.
func (f *Fastpath) attachDevice(d *fastDevice) error {
	if d.Refused != "" {
		return nil
	}
	on := xdpOn(d.link)
	held, err := f.plane.openXDP(d.Ifindex, on)
	if err != nil {
		return err
	}
	if err := f.attachLearner(d.Ifindex); err != nil {
		d.refuse("attach the program that learns: %v", err)
	}
	if held != nil {
		defer func() { _ = held.Close() }()
		if err := updateLink(held, f.forward); err != nil {
			return err
		}
	} else if d.Refused == "" {
		f.attachForward(d, on)
	}
	if d.Refused != "" {
		return nil
	}
	if on, err = readXDP(d.Ifindex); err != nil {
		return err
	}
	d.tellMode(on, true)
	return nil
}

// attachForward attaches XDP to a device that has none of ours.
func (f *Fastpath) attachForward(d *fastDevice, on xdpOf) {
	if d.link.Attrs().Xdp != nil && d.link.Attrs().Xdp.Attached {
		d.refuse("%s", foreignXDP(on))
		return
	}
	why, err := f.attachXDP(d.Ifindex, d.Interface)
	if err != nil {
		now, _ := readXDP(d.Ifindex)
		d.refuse("%s", explainXDP(err, now))
		return
	}
	if why != nil {
		f.log.Warn("the driver takes no XDP program: generic XDP is slower", "interface", d.Interface, "why", why)
	}
	d.fresh = true
}

// wholeMTU is the largest MTU whose frames every driver takes in one piece.
const wholeMTU = 1500

// judgeTargets refuses devices whose drivers do not send all that native XDP
// redirects. Generic XDP sends as the stack does.
func judgeTargets(devices []*fastDevice, ask func(ifindex int) (features uint64, known bool, err error)) {
	native := ""
	for _, d := range devices {
		if d.Mode == modeNative {
			native = d.Interface
		}
	}
	if native == "" {
		return
	}
	for _, d := range devices {
		if d.Refused != "" {
			continue
		}
		features, known, err := ask(d.Ifindex)
		if err != nil {
			d.warn("%v", err)
		}
		if !known && d.Mode == modeNative { // as good as every driver that has native XDP
			features = xdpSends | xdpSendsParts
		}
		d.judgeTarget(features, native)
	}
}

// features is xdpFeatures.
func (f *Fastpath) features(ifindex int) (features uint64, known bool, err error) {
	if f.opts.noFeatures {
		return 0, false, nil
	}
	return xdpFeatures(ifindex)
}

func (d *fastDevice) judgeTarget(features uint64, native string) {
	const why = "its driver sends no frames that XDP redirects"
	mtu := d.link.Attrs().MTU
	switch {
	case features&xdpSends == 0 && d.link.Type() == "veth":
		d.refuse("%s (ndo_xdp_xmit): a veth does when its other end has GRO (\"ethtool -K PEER gro on\") or an XDP program", why)
	case features&xdpSends == 0:
		d.refuse("%s (ndo_xdp_xmit), and %s would send some there: take one of them out of fastpath.interfaces", why, native)
	case features&xdpSendsParts == 0 && mtu > wholeMTU:
		d.refuse("%s in parts, as large ones come, and its MTU is %d: lower it to %d, or take it out of fastpath.interfaces", why, mtu, wholeMTU)
	}
}

// refuseExcess refuses the devices that no number is left for.
func refuseExcess(devices []*fastDevice, most int) {
	n := 0
	for _, d := range devices {
		if d.Refused != "" {
			continue
		}
		if n++; n > most {
			d.refuse("the fast path takes %d interfaces at most", most)
		}
	}
}

// retire takes devices off the fast path that do not take part any more, and
// detaches what is not named.
func (f *Fastpath) retire(devices []*fastDevice) error {
	stay, named := make(map[int]bool), make(map[int]bool)
	for _, d := range devices {
		named[d.Ifindex] = true
		stay[d.Ifindex] = d.Refused == ""
	}
	var leaving []int
	for ifindex := range f.numbers {
		if !stay[ifindex] {
			leaving = append(leaving, ifindex)
			if err := f.putDevice(ifindex, fastDeviceValue{}); err != nil {
				return err
			}
		}
	}
	if len(leaving) > 0 {
		if err := f.Bump(); err != nil {
			return err
		}
		time.Sleep(drain)
	}
	for _, ifindex := range leaving {
		if err := f.dropNumber(ifindex); err != nil {
			return err
		}
	}
	attached, err := f.plane.fastAttachments()
	errs := []error{err}
	for _, ifindex := range attached {
		if named[ifindex] {
			continue
		}
		on, err := readXDP(ifindex)
		if err == nil {
			err = f.plane.detachFast(ifindex, on)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("interface %d: %w", ifindex, err))
		}
	}
	return errors.Join(errs...)
}

// enter writes down the devices that take part: where packets of theirs come in
// and go out, and at last that theirs are looked at.
func (f *Fastpath) enter(scene *fastScene, devices []*fastDevice) error {
	changed := false
	places := make(map[uint32]fastPlaceValue)
	for _, d := range devices {
		if d.Refused != "" {
			continue
		}
		number, known := f.numbers[d.Ifindex]
		if !known {
			number = f.freeNumber()
		}
		if !known || d.fresh {
			if err := f.maps.Out.Put(uint32(number), uint32(d.Ifindex)); err != nil {
				return fmt.Errorf("write map fast_out: %w", err)
			}
			f.numbers[d.Ifindex], changed = number, true
		}
		for ifindex, place := range d.places {
			places[uint32(ifindex)] = fastPlaceValue{Number: place.number(number), Below: uint32(place.below)}
		}
	}
	moved, err := f.putPlaces(places)
	if err != nil {
		return err
	}
	if err := f.placeVirtual(f.virtualPlaces(scene, devices)); err != nil {
		return err
	}
	for _, d := range devices {
		if d.Refused != "" {
			continue
		}
		value := fastDeviceValue{Number: f.numbers[d.Ifindex], Mac: [6]byte(d.link.Attrs().HardwareAddr)}
		// veth_xdp_flush wakes only an end that has an XDP program: what XDP_TX sends to
		// another one stays in its ring. Frames that are redirected reach it.
		if d.link.Type() != "veth" {
			value.Turns = value.Number
		}
		var now fastDeviceValue
		if err := f.deviceMap(d.Ifindex).Lookup(uint32(d.Ifindex), &now); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("read map fast_devices: %w", err)
		}
		if now == value {
			continue
		}
		changed = true
		if err := f.putDevice(d.Ifindex, value); err != nil {
			return err
		}
	}
	if changed || moved {
		return f.Bump()
	}
	return nil
}

func (f *Fastpath) freeNumber() uint8 {
	taken := slices.Collect(maps.Values(f.numbers))
	for number := uint8(1); ; number++ { // refuseExcess sees to it that one is free
		if !slices.Contains(taken, number) {
			return number
		}
	}
}

// putPlaces makes fast_places what is given: first what is wrong goes.
func (f *Fastpath) putPlaces(want map[uint32]fastPlaceValue) (changed bool, err error) {
	now, err := readMap[uint32, fastPlaceValue](f.maps.Places)
	if err != nil {
		return false, err
	}
	for ifindex, place := range now {
		if want[ifindex] == place {
			continue
		}
		changed = true
		if err := f.maps.Places.Delete(ifindex); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return changed, fmt.Errorf("write map fast_places: %w", err)
		}
	}
	for ifindex, place := range want {
		if now[ifindex] == place {
			continue
		}
		changed = true
		err := f.maps.Places.Put(ifindex, place)
		if errors.Is(err, unix.E2BIG) {
			return changed, fmt.Errorf("write map fast_places: there are more than %d VLANs: %w", f.maps.Places.MaxEntries(), err)
		}
		if err != nil {
			return changed, fmt.Errorf("write map fast_places: %w", err)
		}
	}
	return changed, nil
}

// deviceMap is the map that has a device.
func (f *Fastpath) deviceMap(ifindex int) *ebpf.Map {
	if uint32(ifindex) < f.maps.Devices.MaxEntries() {
		return f.maps.Devices
	}
	return f.maps.FarDevices
}

// putDevice writes a device down; its zero value takes it out.
func (f *Fastpath) putDevice(ifindex int, value fastDeviceValue) error {
	m := f.deviceMap(ifindex)
	var err error
	if value == (fastDeviceValue{}) && m == f.maps.FarDevices {
		err = ignoreNotExist(m.Delete(uint32(ifindex)))
	} else {
		err = m.Put(uint32(ifindex), value)
	}
	if err != nil {
		return fmt.Errorf("write map fast_devices: %w", err)
	}
	return nil
}

// dropNumber forgets a device whose packets take the stack already.
func (f *Fastpath) dropNumber(ifindex int) error {
	number := f.numbers[ifindex]
	if err := f.maps.Out.Delete(uint32(number)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("write map fast_out: %w", err)
	}
	delete(f.numbers, ifindex)
	return nil
}

// readNumbers reads the numbers that an earlier start gave. The kernel has taken
// out devices that are gone.
func (f *Fastpath) readNumbers() (map[int]uint8, error) {
	numbers := make(map[int]uint8)
	for number := uint32(1); number < f.maps.Out.MaxEntries(); number++ {
		var ifindex uint32
		err := f.maps.Out.Lookup(number, &ifindex)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read map fast_out: %w", err)
		}
		numbers[int(ifindex)] = uint8(number)
	}
	return numbers, nil
}

// tell logs what is new of what speaks against devices.
func (f *Fastpath) tell(devices []*fastDevice) {
	told := make(map[string]string)
	for _, d := range devices {
		told[d.Interface] = d.Refused
		if d.Refused != f.told[d.Interface] && d.Refused != "" {
			f.log.Warn("an interface does not take the fast path", "interface", d.Interface, "why", d.Refused)
		}
	}
	f.told = told
}

// RemoveFastpath detaches the fast path that is pinned, of whichever version, and
// removes its tables. None is no error.
func (d *Dataplane) RemoveFastpath() error {
	unlock, err := lockDir(d.dir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := d.removeFastpath(); err != nil {
		return fmt.Errorf("remove the fast path: %w", err)
	}
	return nil
}

// removeFastpath is RemoveFastpath for whoever holds the lock.
func (d *Dataplane) removeFastpath() error {
	if err := d.closeFastpath(); err != nil {
		return err
	}
	list, err := d.fastAttachments()
	if err != nil {
		return err
	}
	if len(list) > 0 {
		time.Sleep(drain)
	}
	var errs []error
	for _, ifindex := range list {
		on, err := readXDP(ifindex)
		if err == nil {
			err = d.detachFast(ifindex, on)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("interface %d: %w", ifindex, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return d.unpinFastpath()
}
