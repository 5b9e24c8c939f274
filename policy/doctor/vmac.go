// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"fmt"
	"slices"
	"strings"

	"vippin/policy"
)

// What a hypervisor, or a switch, does to the frames.

// checkARP finds who spoils hosts' ARP caches where virtual MACs are in use: hosts
// must know the VIP at the virtual MAC alone (RFC 9568 section 8.1.2), and this
// router's own addresses at its own. keepalived sees to the interfaces of IPv4.
func checkARP(v *view) []Finding {
	var answering, announcing []string
	for _, link := range v.watched() {
		if link.Kind != "macvlan" || !isVirtualMAC(link.MAC) {
			continue
		}
		below, there := v.links[link.Parent]
		if !there || !hasIPv4(below) {
			continue
		}
		if v.larger(link.Name, "arp_ignore") == "0" {
			answering = append(answering, link.Name)
		}
		if how := v.larger(below.Name, "arp_announce"); link.MAC[4] == 1 && (how == "0" || how == "1") {
			announcing = append(announcing, below.Name)
		}
	}
	var found []Finding
	if len(answering) > 0 {
		found = append(found, warning(kept("net.ipv4.conf.all.arp_ignore", "1"),
			"the virtual MACs of %s answer ARP for addresses of other interfaces (arp_ignore is 0): hosts learn them for the VIP of IPv4 and "+
				"for this router's own addresses, also while it is BACKUP", strings.Join(distinct(answering), ", ")))
	}
	if len(announcing) > 0 {
		found = append(found, warning(kept("net.ipv4.conf.all.arp_announce", "2"),
			"this router asks for MACs in the VIP's name on %s (arp_announce is less than 2): hosts learn the interface's own MAC for the VIP, and at a takeover go on sending to it "+
				"until a gratuitous ARP reaches them", strings.Join(distinct(announcing), ", ")))
	}
	if !v.usesVirtualMAC() {
		return nil
	}
	return unless(found, "nothing but virtual MACs is told of VIPs that have one")
}

// larger is what is in force of a setting that the one for all interfaces and an
// interface's own make together; "" when it is not known.
func (v *view) larger(ifname, name string) string {
	return max(v.sysctl("net/ipv4/conf/all/"+name), v.sysctl("net/ipv4/conf/"+ifname+"/"+name))
}

// onewayAfter is how many packets must have left with the VIP before it means
// something that not one has come back.
const onewayAfter = 20

// unanswered says that many packets left with a MASTER's VIP, and none came
// back.
func (p pin) unanswered() bool {
	return p.status != nil && p.role() == policy.RoleMaster && p.status.PacketsPinned >= onewayAfter && p.status.PacketsReturned == 0
}

// checkVirtualMAC finds a virtual MAC that somebody on the way eats. Nothing that
// is addressed to it has ever arrived (broadcast and multicast arrive all the
// same), although packets leave with the VIP, or others have asked for its
// address and were answered.
func checkVirtualMAC(v *view) []Finding {
	var found []Finding
	var names []string
	told := make(map[int]bool)
	for _, p := range v.present() {
		for _, link := range p.vmacs {
			names = append(names, link.Name)
			if p.unanswered() && v.eaten(link) && !told[link.Index] {
				told[link.Index] = true
				found = append(found, v.eatenFault(link, "%d packets left with the VIP on %s, none came back", p.status.PacketsPinned, p.name()))
			}
		}
	}
	for _, link := range v.watched() {
		if link.Kind != "macvlan" || !isVirtualMAC(link.MAC) {
			continue
		}
		names = append(names, link.Name)
		if asked := v.Machine.Neighbours[link.Index]; asked > 0 && holdsVIP(link) && v.allEaten(link.Parent) && !told[link.Index] {
			told[link.Index] = true
			found = append(found, v.eatenFault(link, "%d of its neighbours asked %s for its MAC", asked, link.Name))
		}
	}
	if len(names) == 0 {
		return nil
	}
	return unless(found, "virtual MACs are in use on %s", strings.Join(distinct(names), ", "))
}

// eatenFault says what shows that nothing gets through to a virtual MAC, and the
// ways out.
func (v *view) eatenFault(link policy.Link, shown string, args ...any) Finding {
	return fault(lines(append([]string{"# or let keepalived do without: take \"use_vmac\" out of the vrrp_instance on both routers"}, v.allSettings()...)...),
		"%s, and nothing addressed to the virtual MAC %s ever arrived at %s: the hypervisor or switch lets only the interface's own MAC through",
		fmt.Sprintf(shown, args...), link.MAC, link.Name)
}

// holdsVIP says whether this router is MASTER where a virtual MAC is lent: a
// link-local address is there as BACKUP, too.
func holdsVIP(link policy.Link) bool {
	return slices.ContainsFunc(link.Addrs, func(a policy.Addr) bool { return !a.Prefix.Addr().IsLinkLocalUnicast() })
}

// eaten says that nothing addressed to a virtual MAC has arrived.
func (v *view) eaten(link policy.Link) bool {
	c, counted := v.Machine.Counters[link.Index]
	return counted && c.In <= c.InMulticast
}

// allEaten says so of every virtual MAC over an interface. Where one gets through
// the others would: hosts have learnt that one instead (see checkARP).
func (v *view) allEaten(index int) bool {
	return !slices.ContainsFunc(v.vmacsOver(index), func(link policy.Link) bool { return !v.eaten(link) })
}

// checkReturns is the same without a virtual MAC, or where that one gets
// through.
func checkReturns(v *view) []Finding {
	var found []Finding
	for _, p := range v.present() {
		if !p.unanswered() || slices.ContainsFunc(p.vmacs, v.eaten) {
			continue
		}
		var remedy []string
		for _, vip := range p.VIPs {
			if is4(vip) {
				remedy = append(remedy, fmt.Sprintf("arping -U -c 3 -I %s %s", p.link.Name, vip))
			}
		}
		remedy = append(remedy, "# the next router may have an old MAC of the VIP, or no route to it; do answers arrive?", "tcpdump -c 20 -eni "+p.link.Name+" host "+p.VIPs[0].String())
		found = append(found, warning(lines(remedy...), "%d packets left with the VIP on %s, and none came back", p.status.PacketsPinned, p.name()))
	}
	return found
}

// platform is a kind of hypervisor.
type platform string

const (
	hyperV platform = "Hyper-V"
	vmware platform = "VMware"
	kvm    platform = "Proxmox/KVM"
	azure  platform = "Azure"
	amazon platform = "Amazon EC2"
	google platform = "Google Compute Engine"
)

// azureTag is the asset tag of every machine there.
const azureTag = "7783-7084-3265-9085-8269-3286-77"

// hypervisor recognises one by what the firmware says.
func (v *view) hypervisor() platform {
	p := v.Machine.Platform
	has := func(text string, parts ...string) bool {
		return slices.ContainsFunc(parts, func(part string) bool { return strings.Contains(text, part) })
	}
	switch {
	case p.Chassis == azureTag:
		return azure
	case has(p.Vendor, "Microsoft") && has(p.Product, "Virtual Machine"):
		return hyperV
	case has(p.Vendor, "VMware") || has(p.Product, "VMware"):
		return vmware
	case has(p.Vendor, "Amazon EC2"):
		return amazon
	case has(p.Vendor, "Google") && has(p.Product, "Google Compute Engine"):
		return google
	case has(p.Vendor, "QEMU", "Red Hat") || has(p.Product, "KVM", "Standard PC", "OpenStack") || has(p.BIOS, "Proxmox"):
		return kvm
	}
	return ""
}

// trunkVLANs lists the outer tags of all pins, and vmac says whether a virtual
// MAC is in use: what a hypervisor must let through.
func (v *view) trunkVLANs() (vlans []uint16) {
	for _, p := range v.pins {
		if p.VLAN.Outer != 0 && p.link != nil && p.link.Kind == "vlan" {
			vlans = append(vlans, p.VLAN.Outer)
		}
	}
	for _, link := range v.watched() {
		if link.Kind == "vlan" && link.VLAN.Outer != 0 && link.VLAN.Outer < 4095 {
			vlans = append(vlans, link.VLAN.Outer)
		}
	}
	return distinct(vlans)
}

func (v *view) usesVirtualMAC() bool {
	return slices.ContainsFunc(v.watched(), func(link policy.Link) bool { return link.Kind == "macvlan" && isVirtualMAC(link.MAC) })
}

// settings are those of this hypervisor for what is in use; none when it is
// not known.
func (v *view) settings() []string { return v.settingsFor(v.hypervisor()) }

// allSettings are those of every hypervisor where it is not known.
func (v *view) allSettings() []string {
	if v.hypervisor() != "" {
		return v.settings()
	}
	return slices.Concat(v.settingsFor(hyperV), v.settingsFor(vmware), v.settingsFor(kvm))
}

func list(vlans []uint16, separator string) string {
	var words []string
	for _, vlan := range vlans {
		words = append(words, fmt.Sprint(vlan))
	}
	return strings.Join(words, separator)
}

const esxiEcho = "esxcli system settings advanced set -o /Net/ReversePathFwdCheckPromisc -i 1    # and reboot the host"

func (v *view) settingsFor(p platform) []string {
	vlans, vmac := v.trunkVLANs(), v.usesVirtualMAC()
	var text []string
	switch p {
	case hyperV:
		text = append(text, fmt.Sprintf("# on the Hyper-V host, in PowerShell; %s stands for the name of this virtual machine there:", v.Node))
		if vmac {
			text = append(text, fmt.Sprintf("Set-VMNetworkAdapter -VMName '%s' -MacAddressSpoofing On", v.Node))
		}
		if len(vlans) > 0 {
			text = append(text, fmt.Sprintf("Set-VMNetworkAdapterVlan -VMName '%s' -Trunk -AllowedVlanIdList '%s' -NativeVlanId 0", v.Node, list(vlans, ",")))
		}
		if len(text) == 1 {
			return nil
		}
	case vmware:
		text = append(text, "# on the ESXi host; PORTGROUP is the one of this virtual machine's adapter:")
		if vmac {
			text = append(text, "# Promiscuous mode, MAC address changes, Forged transmits: Accept (a distributed switch has MAC learning instead of the first)",
				"esxcli network vswitch standard portgroup policy security set -p PORTGROUP --allow-promiscuous=true --allow-mac-change=true --allow-forged-transmits=true",
				"# with several uplinks, else own adverts come back:", esxiEcho)
		}
		if len(vlans) > 0 {
			text = append(text, fmt.Sprintf("# VLAN 4095 hands all tags through (VGT); on a distributed switch: VLAN trunking, range %s", list(vlans, ",")),
				"esxcli network vswitch standard portgroup set -p PORTGROUP --vlan-id 4095")
		}
		if len(text) == 1 {
			return nil
		}
	case kvm:
		text = append(text, "# on the Proxmox or KVM host; VMID, MAC and vmbr0 are those of this virtual machine's adapter:")
		if len(vlans) > 0 {
			text = append(text, "# the bridge needs \"bridge-vlan-aware yes\" and \"bridge-vids 2-4094\" in /etc/network/interfaces, and:",
				fmt.Sprintf("qm set VMID --net0 virtio=MAC,bridge=vmbr0,trunks='%s'", list(vlans, ";")))
		}
		if vmac {
			text = append(text, "# with firewall=1 on the adapter its MAC filter must be off, in /etc/pve/firewall/VMID.fw below [OPTIONS]: macfilter: 0",
				"# with libvirt: no <filterref filter='clean-traffic'/> or 'no-mac-spoofing'")
		}
		text = append(text, "ip link set dev vmbr0 type bridge mcast_snooping 0    # lasting: \"bridge-mcsnoop 0\" in /etc/network/interfaces")
	case azure, amazon, google:
		text = append(text, fmt.Sprintf("# %s passes neither multicast nor addresses that its own interface does not know: use keepalived's unicast_peer, and a", p),
			"# notify script that moves the VIP by the provider's API")
	}
	return text
}

// checkHypervisor names the settings that this one needs, while all is well.
func checkHypervisor(v *view) []Finding {
	p := v.hypervisor()
	if p == "" || len(v.pins) == 0 {
		return nil
	}
	var uses []string
	if vlans := v.trunkVLANs(); len(vlans) > 0 {
		uses = append(uses, "VLANs "+list(vlans, ","))
	}
	if v.usesVirtualMAC() {
		uses = append(uses, "virtual MACs")
	}
	if len(uses) == 0 {
		uses = append(uses, "nothing special")
	}
	f := ok("this machine runs on %s (%s, %s) and uses %s", p, v.Machine.Platform.Vendor, v.Machine.Platform.Product, strings.Join(uses, " and "))
	f.Remedy = lines(v.settings()...)
	return only(f)
}
