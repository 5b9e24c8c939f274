// SPDX-License-Identifier: Apache-2.0

package doctor

import "fmt"

// What the programs have counted.

func checkForeign(v *view) []Finding {
	var found []Finding
	for _, p := range v.pins {
		if p.status == nil || p.status.PacketsForeign == 0 {
			continue
		}
		look := "conntrack -L"
		if vip := p.VIPs[0]; vip.IsValid() {
			look = fmt.Sprintf("conntrack -L -q %s; ss -tunap | grep %s", vip, vip)
		}
		found = append(found, warning(lines("# who uses the VIP as a source beside the pin? A service bound to it, or a snat rule of your own:", look, "nft list ruleset | grep -w snat"),
			"%d packets of others left %s from a VIP and port that belong to a pinned connection: answers may go to the wrong one", p.status.PacketsForeign, p.name()))
	}
	return found
}

// lost are the reasons for which a connection is unpinned although it should
// not be, in the order of the report.
var lost = []struct{ reason, why, remedy string }{
	{"stale_role", "nobody had confirmed the role for longer than vrrp.lease: the daemon was dead or late while this router was MASTER",
		lines("journalctl -u vippin -n 50", "# let systemd start it again at once: \"Restart=always\"; a machine that is short of CPU: a longer vrrp.lease")},
	{"full", "a map was full", lines("# a larger dataplane.max_flows in the configuration, then this, which living connections outlive:",
		"systemctl stop vippin && vippin unload && systemctl start vippin")},
	{"no_port", "no free port was found on the VIP", lines("# more than one VIP, by pins with \"sources\" of their own, or a masquerade that spreads ports:",
		"# masquerade to :1024-65535 random")},
	{"error", "a packet could not be rewritten", lines("# report it, with this:", "vippin status -j; uname -a; ethtool -k INTERFACE")},
}

func checkUnpinned(v *view) []Finding {
	var found []Finding
	for _, p := range v.pins {
		if p.status == nil {
			continue
		}
		for _, l := range lost {
			if n := p.status.UnpinnedBy[l.reason]; n > 0 {
				found = append(found, warning(l.remedy, "%d packets left %s with the router's own address since pin %s was made (%s): %s",
					n, p.name(), p.Key(), l.reason, l.why))
			}
		}
	}
	switch n := v.WithoutPin["no_conntrack"]; {
	case n > 0 && v.hasFlowtable():
		found = append(found, ok("%d forwarded packets left with the router's own address and without a conntrack entry (no_conntrack), "+
			"as those of unpinned connections in a flow table do", n))
	case n > 0:
		found = append(found, warning(lines("# a notrack rule takes masqueraded packets, or conntrack is full:", "nft list ruleset | grep -w notrack", "conntrack -S"),
			"%d forwarded packets left with the router's own address and without a conntrack entry (no_conntrack): nothing can pin them", n))
	}
	if v.Pins == nil {
		return found
	}
	return unless(found, "no connection was left unpinned for want of something")
}
