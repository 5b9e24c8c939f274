// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vippin/policy"
)

func addLink(t *testing.T, l netlink.Link) int {
	t.Helper()
	if err := netlink.LinkAdd(l); err != nil {
		t.Fatalf("add %s %s: %v", l.Type(), l.Attrs().Name, err)
	}
	return up(t, l.Attrs().Name).Attrs().Index
}

func attrsOf(name string) netlink.LinkAttrs {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	return attrs
}

// addShaper is "tc qdisc add dev NAME root tbf".
func addShaper(t *testing.T, ifindex int) netlink.Qdisc {
	t.Helper()
	qdisc := &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifindex, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       1 << 20, Buffer: 1 << 14, Limit: 1 << 16,
	}
	if err := netlink.QdiscAdd(qdisc); err != nil {
		t.Fatalf("add tbf: %v", err)
	}
	return qdisc
}

// mustRefuse attaches one interface and wants it refused so.
func mustRefuse(t *testing.T, f *Fastpath, name, why string) {
	t.Helper()
	devices := mustAttach(t, f, name)
	if len(devices) != 1 || devices[0].Mode != "" || !strings.Contains(devices[0].Refused, why) {
		t.Errorf("%s: %+v, want it refused: %s", name, devices, why)
	}
	if on := devicesOf(t, f); len(on) != 0 {
		t.Errorf("%s refused, the programs have %v", name, on)
	}
}

func mustTake(t *testing.T, f *Fastpath, name, mode string) policy.FastpathDevice {
	t.Helper()
	devices := mustAttach(t, f, name)
	if len(devices) != 1 || devices[0].Mode != mode || devices[0].Refused != "" || len(devicesOf(t, f)) != 1 {
		t.Fatalf("%s: %+v with %v, want it attached, %s", name, devices, devicesOf(t, f), mode)
	}
	return devices[0]
}

func newFastpath(t *testing.T, opts FastpathOptions) (*Dataplane, *Fastpath) {
	t.Helper()
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	return d, mustFastpath(t, d, opts)
}

// TestFastpathUnfit: what is no physical interface is refused, with the one to
// name instead.
func TestFastpathUnfit(t *testing.T) {
	enterNamespace(t)
	eth := cable(t, "eth0", "eth0p")
	macvlan := attrsOf("vrrp.1")
	macvlan.ParentIndex = eth
	addLink(t, &netlink.Macvlan{LinkAttrs: macvlan, Mode: netlink.MACVLAN_MODE_PRIVATE})
	addLink(t, &netlink.Bridge{LinkAttrs: attrsOf("br0")})
	cable(t, "port0", "port0p")
	if err := netlink.LinkSetMaster(up(t, "port0"), up(t, "br0")); err != nil {
		t.Fatal(err)
	}
	addLink(t, &netlink.Tuntap{LinkAttrs: attrsOf("tun0"), Mode: netlink.TUNTAP_MODE_TUN})
	_, f := newFastpath(t, FastpathOptions{})
	for name, why := range map[string]string{
		"vrrp.1": "it is a macvlan on eth0: name eth0 instead",
		"br0":    "it is a bridge",
		"port0":  "it is in br0 (bridge)",
		"lo":     "it is the loopback device",
		"tun0":   "its packets have no Ethernet header",
	} {
		mustRefuse(t, f, name, why)
	}
	vlan, inner, lost := vlanOn(4000, eth, 2, ieee8021Q), vlanOn(4001, 4000, 3, ieee8021Q), vlanOn(4002, 5000, 3, ieee8021Q)
	for link, why := range map[netlink.Link]string{
		vlan: "it is a vlan on eth0: name eth0 instead", inner: "it is a vlan on eth0: name eth0 instead",
		lost: "it is a vlan: XDP runs on physical interfaces only",
	} {
		devices := mustAttachWith(t, f, []string{link.Attrs().Name}, vlan, inner, lost)
		if devices[0].Mode != "" || !strings.Contains(devices[0].Refused, why) {
			t.Errorf("%+v, want it refused: %s", devices, why)
		}
	}
}

// TestFastpathForeignXDP: somebody else's program stays where it is, however it
// is attached.
func TestFastpathForeignXDP(t *testing.T) {
	enterNamespace(t)
	cable(t, "eth0", "eth1")
	eth := up(t, "eth0")
	other, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, Name: "foreign", License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}, // XDP_PASS
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close() })
	id, err := programID(other)
	if err != nil {
		t.Fatal(err)
	}
	_, f := newFastpath(t, FastpathOptions{})
	foreign := fmt.Sprintf("the XDP program %d of somebody else has it", id)
	for name, attach := range map[string]func() (undo func() error){
		"netlink, generic": func() func() error {
			if err := netlink.LinkSetXdpFdWithFlags(eth, other.FD(), unix.XDP_FLAGS_SKB_MODE); err != nil {
				t.Fatal(err)
			}
			return func() error { return netlink.LinkSetXdpFdWithFlags(eth, -1, unix.XDP_FLAGS_SKB_MODE) }
		},
		"netlink, native": func() func() error {
			if err := netlink.LinkSetXdpFdWithFlags(eth, other.FD(), unix.XDP_FLAGS_DRV_MODE); err != nil {
				t.Fatal(err)
			}
			return func() error { return netlink.LinkSetXdpFdWithFlags(eth, -1, unix.XDP_FLAGS_DRV_MODE) }
		},
		"link": func() func() error {
			l, err := link.AttachXDP(link.XDPOptions{Program: other, Interface: eth.Attrs().Index})
			if err != nil {
				t.Fatal(err)
			}
			return l.Close
		},
	} {
		undo := attach()
		mustRefuse(t, f, "eth0", foreign)
		if on, err := readXDP(eth.Attrs().Index); err != nil || on.program != id {
			t.Errorf("%s: then eth0 has %+v, %v, want program %d", name, on, err, id)
		}
		if err := undo(); err != nil {
			t.Fatal(err)
		}
		mustTake(t, f, "eth0", "native")
		mustAttach(t, f)
	}
}

// TestFastpathQueue: a queue discipline that shapes keeps a device off the fast
// path, unless forced. XDP stays attached while it is there.
func TestFastpathQueue(t *testing.T) {
	enterNamespace(t)
	eth := cable(t, "eth0", "eth1")
	addQdisc(t, eth, "clsact")
	d, f := newFastpath(t, FastpathOptions{})
	mustTake(t, f, "eth0", "native")
	before := xdpLinkID(t, d, eth)
	qdisc := addShaper(t, eth)
	mustRefuse(t, f, "eth0", "the queue discipline tbf would not see")
	if now := xdpLinkID(t, d, eth); now != before {
		t.Errorf("link %d became %d", before, now)
	}
	f.opts.Force = true
	device := mustTake(t, f, "eth0", "native")
	if len(device.Warnings) != 1 || !strings.Contains(device.Warnings[0], "tbf does not see") {
		t.Errorf("forced, with the warnings %q", device.Warnings)
	}
	f.opts.Force = false
	if err := netlink.QdiscDel(qdisc); err != nil {
		t.Fatal(err)
	}
	mustTake(t, f, "eth0", "native")
}

// TestFastpathQueueOfVLAN: XDP passes by what is on a VLAN of the device, too.
func TestFastpathQueueOfVLAN(t *testing.T) {
	scene := fastScene{
		links:  linksByIndex(deviceAt(1, "eth0"), vlanOn(2, 1, 2, ieee8021Q), deviceAt(3, "eth1")),
		qdiscs: map[int][]string{1: {"mq", "fq_codel", "fq_codel", "clsact"}, 2: {"htb", "fq"}, 3: {"noqueue"}},
	}
	devices := scene.judge([]string{"eth1", "eth0"}, false)
	if devices[0].Refused != "" {
		t.Errorf("eth1 is refused: %s", devices[0].Refused)
	}
	contains(t, devices[1].Refused, "the queue discipline htb of "+scene.links[2].Attrs().Name+" would not see")
}

// TestFastpathTarget: a veth takes redirected frames only if its other end has
// GRO. What comes by the others would be lost there.
func TestFastpathTarget(t *testing.T) {
	enterNamespace(t)
	eth := cable(t, "eth0", "eth1")
	d, f := newFastpath(t, FastpathOptions{})
	if _, known, err := xdpFeatures(eth); err != nil || !known {
		t.Skipf("this kernel does not say what drivers can (Linux 6.3): %v", err)
	}
	setFeature(t, "eth1", groFeature, false)
	mustRefuse(t, f, "eth0", "its driver sends no frames that XDP redirects (ndo_xdp_xmit): a veth does when its other end has GRO")
	before := xdpLinkID(t, d, eth)
	setFeature(t, "eth1", groFeature, true)
	mustTake(t, f, "eth0", "native")
	if now := xdpLinkID(t, d, eth); now != before || now == 0 {
		t.Errorf("link %d became %d", before, now)
	}
}

// TestFastpathFilters: programs and filters of others at tc are told of, ours are
// not.
func TestFastpathFilters(t *testing.T) {
	eachTier(t, func(t *testing.T, d *Dataplane) {
		eth := cable(t, "eth0", "eth1")
		f := mustFastpath(t, d, FastpathOptions{})
		mustApply(t, d, onePin(eth, "eth0", true))
		mustTake(t, f, "eth0", "native")
		if device := mustTake(t, f, "eth0", "native"); len(device.Warnings) != 0 {
			t.Errorf("warnings %q", device.Warnings)
		}
		foreign := countingProgram(t)
		want := "a filter (bpf) at tc ingress of eth0 does not see"
		if hasTCX(d) {
			want = " at tc ingress of eth0 does not see"
			l, err := link.AttachTCX(link.TCXOptions{Interface: eth, Program: foreign.program, Attach: ingressHook.attach})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Close() }()
		} else {
			err := netlink.FilterAdd(&netlink.BpfFilter{
				FilterAttrs: netlink.FilterAttrs{LinkIndex: eth, Parent: ingressHook.parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 7},
				Fd:          foreign.program.FD(), Name: "foreign", DirectAction: true,
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		if device := mustTake(t, f, "eth0", "native"); len(device.Warnings) != 1 || !strings.Contains(device.Warnings[0], want) {
			t.Errorf("warnings %q, want one: %s", device.Warnings, want)
		}
	})
}

// TestFastpathParts: large frames come in parts, which not every driver sends.
func TestFastpathParts(t *testing.T) {
	for _, test := range []struct {
		mtu      int
		features uint64
		refused  bool
	}{{1500, xdpSends, false}, {1501, xdpSends, true}, {9000, xdpSends | xdpSendsParts, false}, {1500, xdpSendsParts, true}} {
		d := &fastDevice{link: deviceAt(1, "eth0")}
		d.link.Attrs().MTU = test.mtu
		if d.judgeTarget(test.features, "eth1"); (d.Refused != "") != test.refused {
			t.Errorf("MTU %d, features %x: %q, want it refused: %v", test.mtu, test.features, d.Refused, test.refused)
		}
	}
}

// TestFastpathGeneric: a driver without XDP gets generic XDP, with a warning, and
// takes part where no device has native XDP.
func TestFastpathGeneric(t *testing.T) {
	enterNamespace(t)
	ifb := addLink(t, &netlink.Ifb{LinkAttrs: attrsOf("eth0")})
	cable(t, "eth1", "peer1")
	var log logBuffer
	d, f := newFastpath(t, FastpathOptions{Log: log.logger()})
	device := mustTake(t, f, "eth0", "generic")
	if len(device.Warnings) != 1 {
		t.Errorf("warnings %q, want one", device.Warnings)
	}
	contains(t, log.String(), "generic XDP is slower")
	devices := mustAttach(t, f, "eth0", "eth1")
	if devices[1].Mode != "native" || devices[0].Mode != "" {
		t.Fatalf("devices %+v, want eth1 alone", devices)
	}
	contains(t, devices[0].Refused, "and eth1 would send some there")
	opened, err := d.OpenFastpath()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = opened.Close() }()
	state, err := opened.State()
	if err != nil || len(state.Interfaces) != 2 || state.Interfaces[1].Mode != "native" || state.Interfaces[0].Refused == "" {
		t.Errorf("opened: %+v, %v", state.Interfaces, err)
	}
	mustAttach(t, f, "eth1")
	if on, err := readXDP(ifb); err != nil || on.program != 0 {
		t.Errorf("eth0 is not named, and has %+v, %v", on, err)
	}
}

// TestFastpathComesAndGoes: an interface that is not there yet is attached when
// it comes; one that is made anew is another one.
func TestFastpathComesAndGoes(t *testing.T) {
	enterNamespace(t)
	cable(t, "lan0", "lan1")
	_, f := newFastpath(t, FastpathOptions{})
	if devices := mustAttach(t, f, "wan0", "lan0"); devices[0].Refused == "" || devices[1].Mode != "native" {
		t.Fatalf("devices %+v, want lan0 alone", devices)
	}
	lan := devicesOf(t, f)
	for range 2 {
		wan := cable(t, "wan0", "wan1")
		if devices := mustAttach(t, f, "wan0", "lan0"); devices[0].Mode != "native" || devices[0].Ifindex != wan {
			t.Fatalf("devices %+v, want wan0 as %d", devices, wan)
		}
		now := devicesOf(t, f)
		var out uint32
		err := f.maps.Out.Lookup(uint32(now[uint32(wan)].Number), &out)
		if len(now) != 2 || err != nil || out != uint32(wan) {
			t.Errorf("devices %v, wan0 leads to %d, %v", now, out, err)
		}
		for ifindex, device := range lan {
			if now[ifindex] != device {
				t.Errorf("lan0 was %+v and is %+v", device, now[ifindex])
			}
		}
		deleteLink(t, "wan0")
		mustAttach(t, f, "wan0", "lan0")
		if now := devicesOf(t, f); len(now) != 1 || len(f.numbers) != 1 {
			t.Errorf("wan0 is gone, devices %v, numbers %v", now, f.numbers)
		}
	}
}

// TestFastpathMoved: a link stays on a device that goes to another network
// namespace. Another device with its name and number is not taken for it.
func TestFastpathMoved(t *testing.T) {
	enterNamespace(t)
	wan := cable(t, "wan0", "wan1")
	_, f := newFastpath(t, FastpathOptions{})
	mustTake(t, f, "wan0", "native")
	away := elsewhere(t)
	wanLink := up(t, "wan0")
	if err := netlink.LinkSetNsFd(wanLink, int(away)); err != nil {
		t.Fatal(err)
	}
	addVethAt(t, wan, "wan0", "wan2")
	setFeature(t, "wan2", groFeature, true)
	mustTake(t, f, "wan0", "native")
	// The kernel takes a device out that is deleted.
	if err := inNamespace(away, func() error { return netlink.LinkDel(wanLink) }); err != nil {
		t.Fatal(err)
	}
	var out uint32
	if err := f.maps.Out.Lookup(uint32(f.numbers[wan]), &out); err != nil || out != uint32(wan) {
		t.Errorf("wan0 leads to %d, %v", out, err)
	}
	on, err := readXDP(wan)
	if err != nil || on.program == 0 {
		t.Errorf("the new wan0 has %+v, %v", on, err)
	}
}

// TestFastpathFar: an interface with a large number.
func TestFastpathFar(t *testing.T) {
	enterNamespace(t)
	const far = 70000
	addVethAt(t, far, "eth0", "eth1")
	setFeature(t, "eth1", groFeature, true)
	_, f := newFastpath(t, FastpathOptions{})
	mustTake(t, f, "eth0", "native")
	mustAttach(t, f)
	var device fastDeviceValue
	if err := f.maps.FarDevices.Lookup(uint32(far), &device); !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Errorf("detached, %+v, %v", device, err)
	}
}

// TestFastpathTooMany: there are numbers for so many devices only.
func TestFastpathTooMany(t *testing.T) {
	devices := make([]*fastDevice, 4)
	for i := range devices {
		devices[i] = &fastDevice{}
	}
	devices[0].refuse("absent")
	refuseExcess(devices, 2)
	if devices[1].Refused != "" || devices[2].Refused != "" {
		t.Errorf("the first two are refused: %q, %q", devices[1].Refused, devices[2].Refused)
	}
	contains(t, devices[3].Refused, "the fast path takes 2 interfaces at most")
}

// elsewhere makes a network namespace, and stays in this one.
func elsewhere(t *testing.T) netns.NsHandle {
	t.Helper()
	here, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = here.Close() }()
	ns, err := netns.New() // and enters it
	if err == nil {
		err = netns.Set(here)
	}
	if err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}
