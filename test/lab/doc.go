// SPDX-License-Identifier: Apache-2.0

// Package lab builds a small network out of namespaces: LAN hosts, two routers
// with real keepalived that masquerade, a server on the WAN, and the switches
// between them.
//
//	h1  h2 …                          192.168.101.11, .12 …   2001:db8:101::11 …
//	 └─┬─┘  LAN switch                VIP .1                  VIP ::1
//	 ┌─┴─┐
//	ra   rb  lan0 .2 .3               wan0 198.51.100.3 .4    2001:db8:100::3 ::4
//	 └─┬─┘  WAN switch                VIP .2                  VIP ::2 (a deprecated /128)
//	  srv                             198.51.100.10           2001:db8:100::10
//	                                  198.18.0.10             2001:db8:18::10 behind it
//
// With Options.WAN1 the routers and the server also meet on 203.0.113.0/24 and
// 2001:db8:113::/64. With Options.Transit a further router stands on the WAN
// (.20), with a host behind it that the routers reach by it; with
// Options.Inside one on the LAN, for a part of the LAN's prefixes. Everything carries the prefix vpPID- and is removed by
// Close, by Main on a signal, or by the next process's Reap.
//
// With Options.Trunk a router has one cable, eth0, to both switches:
//
//	ra  eth0 ═══ 802.1Q ═══ ra-trunk ─┬─ VLAN 101  a port of the LAN switch
//	     ├─ eth0.101 (or lan0)        └─ VLAN 2    a port of the WAN switch
//	     └─ eth0.2   (or wan0)
//
// The kernels this must run on may lack 8021q, netem and most queue disciplines:
// there ForTest skips tests with a trunk, wan1 stands for a second VLAN, cut cables
// and blocked adverts for bad ones. Package test/vm runs tests on kernels that have
// VLANs; VIPPIN_LAB_TRUNK=tagged (native, qinq) puts every lab's routers on one, and
// VIPPIN_LAB_SLOWNESS=5 has everything wait five times as long.
//
// Threads: nothing here leaves a goroutine's thread in another namespace.
// Node.Do locks the thread and returns it; processes are started from one
// thread that lives as long as the lab, since they are told to die with it.
package lab
