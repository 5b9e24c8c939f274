// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vippin/loader/ethtool"
	"vippin/policy"
)

// fastDevice is an interface of fastpath.interfaces, and what is to be told of it.
type fastDevice struct {
	policy.FastpathDevice
	link   netlink.Link // nil: absent
	places map[int]fastPlace
	fresh  bool // XDP was attached just now
}

func (d *fastDevice) refuse(format string, args ...any) {
	d.Refused, d.Mode = fmt.Sprintf(format, args...), ""
}

func (d *fastDevice) warn(format string, args ...any) {
	d.Warnings = append(d.Warnings, fmt.Sprintf(format, args...))
}

// fastScene is the network namespace as Attach found it.
type fastScene struct {
	links  map[int]netlink.Link
	qdiscs map[int][]string // their kinds, by ifindex
}

// lookAround reads links and queue disciplines of the network namespace of the calling
// thread.
func lookAround() (fastScene, error) {
	scene := fastScene{links: make(map[int]netlink.Link), qdiscs: make(map[int][]string)}
	links, err := undisturbed(netlink.LinkList)
	if err != nil {
		return scene, fmt.Errorf("list links: %w", err)
	}
	for _, link := range links {
		scene.links[link.Attrs().Index] = link
	}
	list, err := undisturbed(func() ([]netlink.Qdisc, error) { return netlink.QdiscList(nil) })
	if err != nil {
		return scene, fmt.Errorf("list queue disciplines: %w", err)
	}
	for _, qdisc := range list {
		ifindex := qdisc.Attrs().LinkIndex
		scene.qdiscs[ifindex] = append(scene.qdiscs[ifindex], qdisc.Type())
	}
	return scene, nil
}

// judge says of every named interface whether it can take the fast path, as far
// as that shows before anything is attached.
func (s *fastScene) judge(names []string, force bool) []*fastDevice {
	byName := make(map[string]netlink.Link)
	named := make(map[int]bool)
	for _, link := range s.links {
		byName[link.Attrs().Name] = link
	}
	var devices []*fastDevice
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			continue
		}
		device := &fastDevice{link: byName[name], places: make(map[int]fastPlace)}
		device.Interface = name
		devices = append(devices, device)
		if device.link == nil {
			device.refuse("there is no such interface now; it is attached when it comes")
			continue
		}
		device.Ifindex = device.link.Attrs().Index
		if why := s.unfit(device.link); why != "" {
			device.refuse("%s", why)
			continue
		}
		named[device.Ifindex] = true
	}
	for ifindex, place := range placesOn(named, s.links) {
		for _, device := range devices {
			if device.Ifindex == place.device {
				device.places[ifindex] = place
			}
		}
	}
	for _, device := range devices {
		if device.Refused == "" {
			device.listVLANs()
			s.judgeQueue(device, force)
			s.warnOfFilters(device)
		}
		if device.Refused == "" {
			device.judgeTags()
		}
	}
	return devices
}

// unfit says why XDP on this kind of interface would not do, "" when it would.
func (s *fastScene) unfit(link netlink.Link) string {
	attrs := link.Attrs()
	switch link.Type() {
	case "vlan", "macvlan", "macvtap", "ipvlan", "ipvtap":
		if root := s.root(link); root != nil {
			return fmt.Sprintf("it is a %s on %s: name %s instead, and its VLANs take the fast path, too", link.Type(), root.Attrs().Name, root.Attrs().Name)
		}
		return fmt.Sprintf("it is a %s: XDP runs on physical interfaces only", link.Type())
	case "bridge", "bond", "team", "vrf", "openvswitch":
		return fmt.Sprintf("it is a %s: XDP runs on physical interfaces that are in none", link.Type())
	}
	if attrs.RawFlags&unix.IFF_LOOPBACK != 0 {
		return "it is the loopback device: nothing is forwarded there"
	}
	if attrs.EncapType != "ether" || len(attrs.HardwareAddr) != 6 {
		return fmt.Sprintf("its packets have no Ethernet header (link type %s)", attrs.EncapType)
	}
	if master := s.links[attrs.MasterIndex]; master != nil {
		return fmt.Sprintf("it is in %s (%s), which decides on its packets: name interfaces that are in none", master.Attrs().Name, master.Type())
	}
	return ""
}

// root is the device that an interface is on, at the bottom; nil if that is in
// another network namespace.
func (s *fastScene) root(link netlink.Link) netlink.Link {
	for range tagsMax {
		parent := taggingOf(link).parent
		if parent == 0 || s.links[parent] == nil {
			break
		}
		link = s.links[parent]
	}
	if taggingOf(link).tag != 0 || taggingOf(link).parent != 0 {
		return nil
	}
	return link
}

func (d *fastDevice) listVLANs() {
	for _, place := range d.places {
		if place.vlan.Outer != 0 && !slices.Contains(d.VLANs, place.vlan) {
			d.VLANs = append(d.VLANs, place.vlan)
		}
	}
	slices.SortFunc(d.VLANs, func(a, b policy.VLAN) int {
		return (int(a.Outer)<<12 | int(a.Inner)) - (int(b.Outer)<<12 | int(b.Inner))
	})
}

// unshaped are the queue disciplines that only queue.
var unshaped = []string{"noqueue", "pfifo_fast", "pfifo", "bfifo", "fq_codel", "fq", "mq", "clsact", "ingress"}

// judgeQueue refuses a device with a queue discipline, or with one on a VLAN on
// it, that means more than a queue: XDP passes it by.
func (s *fastScene) judgeQueue(d *fastDevice, force bool) {
	for ifindex := range d.places {
		for _, kind := range s.qdiscs[ifindex] {
			if slices.Contains(unshaped, kind) {
				continue
			}
			where := ""
			if ifindex != d.Ifindex {
				where = " of " + s.links[ifindex].Attrs().Name
			}
			if force {
				d.warn("the queue discipline %s%s does not see what takes the fast path", kind, where)
				continue
			}
			d.refuse("the queue discipline %s%s would not see what takes the fast path: remove it, take the interface out of fastpath.interfaces, or set fastpath.force", kind, where)
			return
		}
	}
	slices.Sort(d.Warnings)
}

// judgeTags refuses a device that takes the tags off that XDP must see.
func (d *fastDevice) judgeTags() {
	if len(d.VLANs) == 0 {
		return
	}
	features, err := ethtool.Active(d.Interface)
	if err != nil {
		d.warn("whether it takes VLAN tags off before XDP sees them is unknown: %v", err)
		return
	}
	var off []string
	for feature, service := range map[string]bool{stripsCustomer: false, stripsService: true} {
		if features[feature] && d.hasOuter(service) {
			off = append(off, feature+" off")
		}
	}
	if len(off) == 0 {
		return
	}
	slices.Sort(off)
	way := fmt.Sprintf("ethtool -K %s %s", d.Interface, strings.Join(off, " "))
	if d.link.Type() == "veth" {
		way += ", and at its other end \"ethtool -K PEER tx-vlan-hw-insert off tx-vlan-stag-hw-insert off\""
	}
	d.refuse("it takes VLAN tags off before XDP sees them: %s", way)
}

// hasOuter tells whether a VLAN on a device has an outer tag of 802.1ad, or 802.1Q.
func (d *fastDevice) hasOuter(service bool) bool {
	for _, place := range d.places {
		if place.vlan.Outer != 0 && place.service == service {
			return true
		}
	}
	return false
}

// explainXDP says why XDP could not be attached.
func explainXDP(err error, on xdpOf) string {
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
		return foreignXDP(on)
	}
	return fmt.Sprintf("attach XDP program: %v", err)
}

func foreignXDP(on xdpOf) string {
	which := "another XDP program has it"
	if on.program != 0 {
		which = fmt.Sprintf("the XDP program %d of somebody else has it (\"bpftool prog show id %d\" tells whose)", on.program, on.program)
	}
	return which + ": detach that one, or take the interface out of fastpath.interfaces"
}
