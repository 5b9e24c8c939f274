// SPDX-License-Identifier: Apache-2.0

package test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"vippin/policy"
	"vippin/policy/doctor"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// What the programs counted: answers that do not come, full maps, others' use
// of a mapped end.
func TestDoctorFindsWhatWasCounted(t *testing.T) {
	t.Parallel()
	s := setScene(t, "doccounted", lab.Options{Hosts: 1, SingleRouter: true})
	s.start(s.RA, "dataplane: {max_flows: 16}\n"+onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	s.wantHealthy(s.RA)
	far := lab.Port(lab.ServerFar.V4, serverPort)

	s.must(s.Server.NFT(s.ctx, "table inet mute { chain input { type filter hook input priority filter; udp dport 7000 drop; }; }"))
	s.shout(s.Hosts[0], far)
	s.wantFound(s.RA, sick{"returns", doctor.Warning, "wan0", ""})
	s.must(s.Server.NFT(s.ctx, "delete table inet mute"))
	s.source(s.Hosts[0], "udp", netip.AddrPort{}, far.Addr())
	s.awaitHealthy(s.RA)
	s.must(s.RA.Netlink().ConntrackTableFlush(netlink.ConntrackTable))
	s.awaitFlows(s.RA, 2, 0)

	var flows traffic.Flows
	for range 14 {
		flows = append(flows, s.flow(s.Hosts[0], "udp", netip.AddrPort{}, far))
	}
	s.wantFound(s.RA, sick{"max_flows", doctor.Warning, "14 of 16", ""})
	flows = append(flows, s.flow(s.Hosts[0], "udp", netip.AddrPort{}, far), s.flow(s.Hosts[0], "udp", netip.AddrPort{}, far))
	s.wantFound(s.RA, sick{"max_flows", doctor.Error, "16 of 16", ""})
	over := s.flow(s.Hosts[0], "udp", netip.AddrPort{}, far)
	s.wantFound(s.RA, sick{"unpinned", doctor.Warning, "(full)", "max_flows"})
	over.Stop()
	s.forget(s.RA, flows)
	s.awaitFlows(s.RA, 2, 0)

	s.foreignFlow()
	s.wantFound(s.RA, sick{"foreign", doctor.Warning, "wan0", "unpinned"})
}

// A daemon that was dead while the role went leaves connections unpinned: that
// is told afterwards.
func TestDoctorFindsStaleRole(t *testing.T) {
	t.Parallel()
	s := setScene(t, "docstale", lab.Options{Hosts: 1})
	s.must(s.StartRouters(s.ctx, lab.Keepalived{}))
	daemon := s.start(s.RA, onWANLeased)
	s.start(s.RB, onWANLeased)
	s.awaitPeace()
	s.routeBy(s.Hosts[0], s.RA)
	s.wantSources(s.Hosts[0], vip)
	s.wantHealthy(s.RA)
	s.must(daemon.Kill9())
	s.must(s.RA.Keepalived().Stop())
	s.must(s.RB.AwaitMaster(s.ctx))
	time.Sleep(lease + 4*advertInterval) // the last signs of life are too old
	s.wantSources(s.Hosts[0], s.RA.Own(lab.WAN))
	s.must(daemon.Restart())
	s.must(s.AwaitVippin(s.ctx, s.RA))
	s.wantFound(s.RA, sick{"unpinned", doctor.Warning, "stale_role", ""})
	s.wantHealthy(s.RB)
}
