// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"fmt"
	"slices"
	"strings"

	"vippin/policy"
)

// Settings and limits of the kernel.

func checkForwarding(v *view) []Finding {
	var found []Finding
	want4, want6 := v.families()
	if want4 && v.sysctl("net/ipv4/ip_forward") == "0" {
		found = append(found, fault(kept("net.ipv4.ip_forward", "1"), "IPv4 is not forwarded: net.ipv4.ip_forward is 0"))
	} else if want4 {
		for _, link := range v.watched() {
			if name := "net/ipv4/conf/" + link.Name + "/forwarding"; v.sysctl(name) == "0" {
				found = append(found, fault(setting(name, "1"), "IPv4 that comes in by %s is not forwarded: %s is 0", link.Name, dotted(name)))
			}
		}
	}
	if want6 && v.sysctl("net/ipv6/conf/all/forwarding") == "0" {
		found = append(found, fault(kept("net.ipv6.conf.all.forwarding", "1"), "IPv6 is not forwarded: net.ipv6.conf.all.forwarding is 0"))
	}
	seen := make(map[int]bool)
	for _, p := range v.present() {
		if name := "net/ipv6/conf/" + p.link.Name + "/disable_ipv6"; p.VIP6.IsValid() && !seen[p.link.Index] && v.sysctl(name) == "1" {
			found = append(found, fault(setting(name, "0"), "IPv6 is switched off on %s, which has the VIP %s: %s is 1", p.name(), p.VIP6, dotted(name)))
		}
		seen[p.link.Index] = true
	}
	if !want4 && !want6 {
		return found
	}
	return unless(found, "packets are forwarded")
}

// kept is a setting that also outlives a reboot.
func kept(name, value string) string {
	return lines("sysctl -w "+name+"="+value, fmt.Sprintf("echo '%s = %s' >> /etc/sysctl.d/90-vippin.conf", name, value))
}

// families says of which there are VIPs.
func (v *view) families() (v4, v6 bool) {
	for _, p := range v.pins {
		v4, v6 = v4 || p.VIP4.IsValid(), v6 || p.VIP6.IsValid()
	}
	return v4, v6
}

// strict says whether an interface's reverse-path filter is (RFC 3704 section
// 2.2). The kernel takes the larger of the interface's setting and that of all.
func (v *view) strict(ifname string) bool {
	return v.larger(ifname, "rp_filter") == "1"
}

// hasIPv4 says whether an interface has an address that packets come for.
func hasIPv4(link policy.Link) bool {
	return slices.ContainsFunc(link.Addrs, func(a policy.Addr) bool { return is4(a.Prefix.Addr()) })
}

// returnsBy says that the way back to whatever comes to a virtual MAC is by its
// own interface, which a strict filter wants: routes lead by it, and none by the
// one below.
func (v *view) returnsBy(link policy.Link) bool {
	return v.Machine.Ways4[link.Index] && !v.Machine.Ways4[link.Parent]
}

// loose lets everything in that has some way back; 2 wins over a 1 for all.
func loose(ifname string) string { return setting("net/ipv4/conf/"+ifname+"/rp_filter", "2") }

func checkRPFilter(v *view) []Finding {
	var found []Finding
	for _, link := range v.watched() {
		if link.Kind == "macvlan" && isVirtualMAC(link.MAC) && hasIPv4(link) && v.strict(link.Name) && !v.returnsBy(link) {
			found = append(found, fault(loose(link.Name),
				"the reverse-path filter of the virtual MAC interface %s is strict: the way back is by %s, so what comes to the virtual MAC is dropped",
				link.Name, v.links[link.Parent].Name))
		}
	}
	// Several ways out: answers may come in where the main route does not lead.
	var strict []string
	outside := make(map[string]bool)
	for _, p := range v.present() {
		if p.VIP4.IsValid() && !outside[p.link.Name] {
			outside[p.link.Name] = true
			if v.strict(p.link.Name) {
				strict = append(strict, p.link.Name)
			}
		}
	}
	if len(outside) > 1 && len(strict) > 0 && v.Machine.RPFDrops > 0 {
		var remedy []string
		for _, ifname := range strict {
			remedy = append(remedy, loose(ifname))
		}
		remedy = append(remedy, "# is it so? this counts on if it is not:", "nstat -az TcpExtIPReversePathFilter")
		found = append(found, warning(lines(remedy...), "reverse-path filters have dropped %d packets, and those of %s are strict: "+
			"with several ways out, answers come in where the route back does not lead", v.Machine.RPFDrops, strings.Join(strict, ", ")))
	}
	if len(v.pins) == 0 {
		return found
	}
	return unless(found, "no reverse-path filter is in the way")
}

// Of a table that is full, new connections are lost.
const (
	nearFull   = 80 // per cent
	almostFull = 95
)

// filling judges how full a table is.
func filling(used, most uint64, remedy, what, consequence string) []Finding {
	if most == 0 {
		return nil
	}
	percent := used * 100 / most
	text := fmt.Sprintf("%d of %d %s (%d %%)", used, most, what, percent)
	switch {
	case percent >= almostFull:
		return only(fault(remedy, "%s: %s", text, consequence))
	case percent >= nearFull:
		return only(warning(remedy, "%s: %s", text, consequence))
	}
	return only(ok("%s", text))
}

func checkConntrackMax(v *view) []Finding {
	count, counted := v.number("net/netfilter/nf_conntrack_count")
	most, limited := v.number("net/netfilter/nf_conntrack_max")
	if !counted || !limited {
		return nil
	}
	remedy := lines(kept("net.netfilter.nf_conntrack_max", fmt.Sprint(2*most)),
		"# a quarter as many hash buckets keep look-ups short:", fmt.Sprintf("echo %d > /sys/module/nf_conntrack/parameters/hashsize", most/2),
		"# who has them?", "conntrack -L 2>/dev/null | awk '{ match($0, /src=[^ ]*/); print substr($0, RSTART, RLENGTH) }' | sort | uniq -c | sort -n | tail")
	return filling(count, most, remedy, "connections in nf_conntrack", "when it is full new ones are dropped")
}

func checkMaxFlows(v *view) []Finding {
	if v.Config == nil || v.Pins == nil {
		return nil
	}
	var flows uint64
	for _, p := range v.Pins {
		flows += p.Flows
	}
	most := uint64(v.Config.Dataplane.MaxFlows)
	remedy := lines(fmt.Sprintf("# set \"dataplane: {max_flows: %d}\" in %s; it takes effect after this, which living connections outlive:", 2*most, v.Config.File),
		"systemctl stop vippin && vippin unload && systemctl start vippin")
	return filling(flows, most, remedy, "pinned connections (dataplane.max_flows)", "further ones stay unpinned")
}

func checkEvents(v *view) []Finding {
	value := v.sysctl("net/netfilter/nf_conntrack_events")
	if v.Daemon == nil || value == "" {
		return nil
	}
	if value != "1" {
		return only(warning(kept("net.netfilter.nf_conntrack_events", "1"), "net.netfilter.nf_conntrack_events is %s, somebody has changed it "+
			"since the daemon set it to 1: the end of connections born while nobody listens is not told, and their mappings stay", value))
	}
	return only(ok("the kernel tells of every connection that ends"))
}

func checkConntrackd(v *view) []Finding {
	if len(v.Machine.Conntrackd) == 0 {
		return nil
	}
	var pids []string
	for _, pid := range v.Machine.Conntrackd {
		pids = append(pids, fmt.Sprint(pid))
	}
	return only(warning(lines("# let one of them do it; on Debian:", "systemctl disable --now conntrackd",
		"# on VyOS, in configuration mode:", "# delete service conntrack-sync"),
		"conntrackd runs beside (pid %s): entries that it injects are in the way of vippin's own (EEXIST), and its script's flush at a takeover takes living ones",
		strings.Join(pids, ", ")))
}

// checkOffload looks for flow tables that tc does not see the packets of.
func checkOffload(v *view) []Finding {
	var found []Finding
	var software []string
	for _, table := range v.Machine.Flowtables {
		for _, p := range v.present() {
			if port := v.bridgePort(table, p); port != "" {
				found = append(found, fault(lines("# where your rules are kept, have the flow table take the bridge and not its ports:",
					fmt.Sprintf("nft list flowtable %s %s", strings.TrimPrefix(table.Table, "table "), table.Name)),
					"flow table %s of %s hands packets to %s, a port of the bridge %s: established connections of %s bypass the programs and leave with the router's own address",
					table.Name, table.Table, port, p.link.Name, p.name()))
				continue
			}
			device := v.offloads(table, p)
			if device == "" {
				continue
			}
			if !table.Hardware {
				software = append(software, fmt.Sprintf("%s of %s", table.Name, table.Table))
				continue
			}
			found = append(found, fault(lines("# define it without \"flags offload\" where your rules are kept, or take the device out of it; for now:",
				fmt.Sprintf("nft delete flowtable %s %s    # after the rules that use it", strings.TrimPrefix(table.Table, "table "), table.Name),
				"ethtool -K "+device+" hw-tc-offload off"),
				"flow table %s of %s is offloaded to the NIC of %s: established connections of %s bypass the programs and leave with the router's own address",
				table.Name, table.Table, device, p.name()))
		}
	}
	if software = distinct(software); len(found) == 0 && len(software) > 0 {
		return only(ok("flow table %s works in software: its packets pass the programs", strings.Join(software, ", ")))
	}
	return found
}

// hasFlowtable tells whether a flow table carries a pin's packets.
func (v *view) hasFlowtable() bool {
	for _, table := range v.Machine.Flowtables {
		for _, p := range v.present() {
			if v.offloads(table, p) != "" {
				return true
			}
		}
	}
	return false
}

// bridgePort returns which device of a flow table is a port of a pinned bridge: the
// kernel gives packets to the port then, not to the bridge.
func (v *view) bridgePort(table policy.Flowtable, p pin) string {
	for _, link := range v.Observed.Links {
		if p.link.Kind == "bridge" && link.Master == p.link.Index && slices.Contains(table.Devices, link.Name) {
			return link.Name
		}
	}
	return ""
}

// offloads returns which device of a flow table carries a pin's packets.
func (v *view) offloads(table policy.Flowtable, p pin) string {
	for _, link := range append(v.below(p.link.Index), p.vmacs...) {
		if slices.Contains(table.Devices, link.Name) {
			return link.Name
		}
	}
	return ""
}
