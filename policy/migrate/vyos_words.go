// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"net/netip"
	"strings"
)

// What VyOS's commands are to vippin. Lists are looked through from the top.

const textVyOSStays = "stays in VyOS: vippin replaces conntrack-sync, not VRRP"

// vyTopLevel are the words that commands begin with, and what migrate has no use for.
var vyTopLevel = wordSet(`cluster container firewall high-availability interfaces load-balancing nat nat64 nat66 netns pki policy
	protocols qos service system traffic-policy vpn vpp vrf zone-policy`)

func wordSet(words string) map[string]bool {
	all := map[string]bool{}
	for word := range strings.FieldsSeq(words) {
		all[word] = true
	}
	return all
}

var vyTerms = map[string][]vyTerm{
	"service conntrack-sync":    vySync,
	"high-availability vrrp":    vyVRRP,
	"high-availability disable": {{path: "", text: "VRRP is switched off here: nobody is MASTER until it is on again"}},
	"nat source":                vyNAT(false),
	"nat66 source":              vyNAT(true),
}

var vySync = []vyTerm{
	{path: "accept-protocol *", read: vyProtocols},
	{path: "disable-external-cache", text: textCache},
	{path: "disable-syslog", text: textLog},
	{path: "event-listen-queue-size *", text: textNetlink},
	{path: "expect-sync all", read: func(v *vyos, _ []string, _ place) { v.expect = expectations{given: true, on: true} }},
	{path: "expect-sync *", text: everyHelper, read: func(v *vyos, _ []string, _ place) { v.expect = expectations{given: true, on: true} }},
	{path: "failover-mechanism vrrp sync-group *", read: func(v *vyos, args []string, at place) { v.failover, v.at = args[0], at }},
	{path: "ignore-address ipv4 *", read: vyIgnore},
	{path: "ignore-address ipv6 *", read: vyIgnore},
	{path: "ignore-address *", read: vyIgnore},
	{path: "interface *", read: func(v *vyos, args []string, at place) { v.channel(args[0], at) }},
	{path: "interface * peer *", read: vyPeer},
	{path: "interface * port *", text: textPort, read: func(v *vyos, args []string, at place) { v.channel(args[0], at) }},
	{path: "listen-address *", read: vyListen},
	{path: "mcast-group *", text: textMcast},
	{path: "purge-timeout *", text: textPurge},
	{path: "startup-resync", text: textResync},
	{path: "sync-queue-size *", text: textQueues},
}

func vyProtocols(v *vyos, args []string, at place) {
	if !v.protocols.given {
		v.protocols = protocols{at: at, given: true, accept: true}
	}
	for name := range strings.SplitSeq(args[0], ",") {
		if name = strings.TrimSpace(name); name != "" {
			v.addProtocol(at, name)
		}
	}
}

func vyIgnore(v *vyos, args []string, at place) {
	v.ignoreAddress(at, "ignore-address "+args[0], args[0])
}

func vyPeer(v *vyos, args []string, at place) {
	l := v.channel(args[0], at)
	l.kind = "UDP"
	addr, err := netip.ParseAddr(args[1])
	if err != nil {
		v.warn(at, "peer %q is no address: nothing was made of it", args[1])
		return
	}
	l.peer = addr
}

func vyListen(v *vyos, args []string, at place) {
	addr, err := netip.ParseAddr(args[0])
	if err != nil {
		v.warn(at, "listen-address %q is no address: nothing was made of it", args[0])
		return
	}
	v.listen = append(v.listen, addr)
}

var vyVRRP = []vyTerm{
	{path: "group * interface *", read: vyInterface},
	{path: "group * vrid *", read: vyVRID},
	{path: "group * address *", read: vyVIP},
	{path: "group * address * interface *", read: vyVIP},
	{path: "group * virtual-address *", read: vyVIP},
	{path: "group * virtual-address * interface *", read: vyVIP},
	{path: "group * excluded-address *", read: vyVIP},
	{path: "group * excluded-address * interface *", read: vyVIP},
	{path: "group * virtual-address-excluded *", read: vyVIP},
	{path: "group * peer-address *", text: textUnicast, read: vyAdvertsTo},
	{path: "group * hello-source-address *", text: textUnicast, read: vyAdvertsFrom},
	{path: "group * rfc3768-compatibility", text: textVMAC},
	{path: "group * disable", text: "a group that is switched off has no pins here: they come when you migrate again with it switched on",
		read: func(v *vyos, args []string, at place) { v.group(args[0], at).off = true }},
	{path: "group * no-preempt", text: textPreempt},
	{path: "group * preempt-delay *", text: textPreempt},
	{path: "group * advertise-interval *", text: textSeen},
	{path: "group * authentication **", secret: true, text: textSeen},
	{path: "group * transition-script **", read: vyScript("group")},
	{path: "group * description *", text: textVyOSStays},
	{path: "group * garp **", text: textVyOSStays},
	{path: "group * health-check **", text: textVyOSStays},
	{path: "group * priority *", text: textVyOSStays},
	{path: "group * track **", text: textVyOSStays},
	{path: "group * version *", text: textSeen},
	{path: "sync-group * member *", read: func(v *vyos, args []string, at place) {
		g := v.syncGroup(args[0], at)
		g.members = append(g.members, args[1])
	}},
	{path: "sync-group * transition-script **", read: vyScript("sync-group")},
	{path: "sync-group * health-check **", text: textVyOSStays},
	{path: "sync-group * description *", text: textVyOSStays},
	{path: "global-parameters version *", text: textSeen},
	{path: "global-parameters **", text: textVyOSStays},
	{path: "snmp **", text: textVyOSStays},
}

func vyInterface(v *vyos, args []string, at place) {
	if !isInterface(args[1]) {
		v.warn(at, "interface %q is no name of an interface", args[1])
		return
	}
	v.group(args[0], at).iface = args[1]
}

func vyVRID(v *vyos, args []string, at place) {
	vrid, ok := parseVRID(args[1])
	if !ok {
		v.warn(at, "vrid %q is not 1 to 255", args[1])
		return
	}
	v.group(args[0], at).vrid = vrid
}

func vyVIP(v *vyos, args []string, at place) {
	dev := ""
	if len(args) > 2 {
		if dev = args[2]; !isInterface(dev) {
			v.warn(at, "interface %q is no name of an interface", dev)
			return
		}
	}
	group := v.group(args[0], at)
	if addr, ok := parseVIP(args[1]); ok { // "address A" and "address A interface I" are one
		for i, known := range group.vips {
			if known.addr == addr {
				group.vips[i].dev = dev
				return
			}
		}
	}
	v.addVIP(group, args[1], dev, at)
}

func vyAdvertsTo(v *vyos, args []string, at place) {
	if addr, err := netip.ParseAddr(args[1]); err == nil {
		group := v.group(args[0], at)
		group.peers = append(group.peers, addr)
		return
	}
	v.warn(at, "peer-address %q is no address", args[1])
}

func vyAdvertsFrom(v *vyos, args []string, at place) {
	if addr, err := netip.ParseAddr(args[1]); err == nil {
		v.group(args[0], at).source = addr
		return
	}
	v.warn(at, "hello-source-address %q is no address", args[1])
}

// vyScript looks for scripts that served conntrack-sync.
func vyScript(kind string) func(*vyos, []string, place) {
	return func(v *vyos, args []string, at place) {
		text := "stays in VyOS: it is called as before. For vippin's own line see docs/keepalived.md"
		if isSyncScript(strings.Join(args[1:], " ")) {
			text = textSyncScript
		}
		v.explain(inGroups, at, kind+" "+args[0]+" transition-script", text)
	}
}

// vyNAT is rules of source NAT of one family.
func vyNAT(v6 bool) []vyTerm {
	set := func(change func(r *natRule, args []string)) func(*vyos, []string, place) {
		return func(v *vyos, args []string, at place) { change(v.rule(args[0], v6, at), args) }
	}
	out := set(func(r *natRule, args []string) {
		if args[1] != "any" {
			r.iface = args[1]
		}
	})
	group := set(func(r *natRule, args []string) { r.iface, r.group = args[1], true })
	source := set(func(r *natRule, args []string) { r.source = args[1] })
	translation := set(func(r *natRule, args []string) { r.translation = args[1] })
	narrow := func(what string) func(*vyos, []string, place) {
		return set(func(r *natRule, args []string) {
			if len(args) > 1 && args[1] == "all" { // protocol all
				return
			}
			r.narrow = append(r.narrow, what)
		})
	}
	off := set(func(r *natRule, _ []string) { r.off = true })
	nothing := set(func(*natRule, []string) {})
	return []vyTerm{
		{path: "rule * outbound-interface *", read: out},
		{path: "rule * outbound-interface name *", read: out},
		{path: "rule * outbound-interface interface-name *", read: out},
		{path: "rule * outbound-interface group *", read: group},
		{path: "rule * outbound-interface interface-group *", read: group},
		{path: "rule * source address *", read: source},
		{path: "rule * source prefix *", read: source},
		{path: "rule * source **", read: narrow("source")},
		{path: "rule * translation address *", read: translation},
		{path: "rule * translation **", read: nothing},
		{path: "rule * exclude", read: off},
		{path: "rule * disable", read: off},
		{path: "rule * protocol *", read: narrow("protocol")},
		{path: "rule * destination **", read: narrow("destination")},
		{path: "rule * packet-type **", read: narrow("packet-type")},
		{path: "rule * load-balance **", read: narrow("load-balance")},
		{path: "rule * description *", read: nothing},
		{path: "rule * log **", read: nothing},
	}
}
