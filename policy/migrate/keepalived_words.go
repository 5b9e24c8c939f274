// SPDX-License-Identifier: Apache-2.0

package migrate

import "strings"

// What keepalived.conf's settings are to vippin.

const (
	textStays = "stays in keepalived: vippin replaces conntrackd, not keepalived"
	textSeen  = "stays as it is; vippin sees it on the wire (\"vippin vrrp\")"
	textTrack = "stays as it is. Add the file by which vippin says that this router has every connection and may take over " +
		"(docs/keepalived.md): track_file vippin { file /run/vippin/ready }"
	textPreempt = "stays as it is. vippin says when a router that comes back has every connection (sync.ready_file, docs/keepalived.md), " +
		"so it may preempt then"
	textVMAC    = "stays as it is; a VIP on the virtual MAC's interface counts for the interface below"
	textUnicast = "stays as it is; unicast adverts are seen like others"
	textScript  = "stays as it is: it is called as before"

	textSyncScript = "take it out on both routers: a takeover needs no commit, no flush and no resync any more, and \"conntrackd -t\" would empty " +
		"the kernel's table. If vippin shall hear of transitions (it sees them by itself, this is one more witness): " +
		"notify \"/usr/bin/vippin vrrp-notify\" root"
	textNotifyFIFO = "stays in keepalived. A FIFO has one reader: give vippin one of its own (vrrp.keepalived_fifo here, vrrp_notify_fifo with the " +
		"same path there), or none, it sees transitions by itself"
	textNetns = "keepalived runs in a network namespace: vippin must run in the same one"
)

// terms are keywords that the same is said of.
func terms(text string, block bool, names string) map[string]kaTerm {
	all := map[string]kaTerm{}
	for name := range strings.FieldsSeq(names) {
		all[name] = kaTerm{text: text, block: block}
	}
	return all
}

func joined(maps ...map[string]kaTerm) map[string]kaTerm {
	all := map[string]kaTerm{}
	for _, m := range maps {
		for name, term := range m {
			all[name] = term
		}
	}
	return all
}

var kaTop, kaInstance, kaSyncGroup map[string]kaTerm

func init() { // the blocks' functions come back to these
	kaTop = joined(
		terms(textStays, false, `use_pid_dir linkbeat_use_polling child_wait_time instance net_namespace_ipvs namespace_with_ipsets
			config_id`),
		terms(textNetns, false, `net_namespace`),
		terms(textStays, true, `linkbeat_interfaces interface_up_down_delays static_track_group static_ipaddress static_address
			static_routes static_rules garp_group vrrp_script track_file vrrp_track_file vrrp_track_process track_process
			bfd_instance virtual_server virtual_server_group virtual_server_groups SSL`),
		map[string]kaTerm{
			"global_defs":     {block: true, read: passed(textStays)},
			"vrrp_instance":   {block: true, read: vrrpInstance},
			"vrrp_sync_group": {block: true, read: vrrpSyncGroup},
		},
	)
	kaInstance = joined(notifyTerms,
		terms(textStays, false, `state priority vrf native_ipv6 dont_track_primary track_src_ip check_unicast_src unicast_fault_no_peer
			unicast_ttl garp_master_delay garp_master_repeat garp_lower_prio_delay garp_lower_prio_repeat garp_master_refresh
			garp_master_refresh_repeat garp_extra_if garp_interval gna_interval lower_prio_no_advert higher_prio_send_advert promote_secondaries
			accept no_accept skip_check_adv_addr strict_mode debug kernel_rx_buf_size linkbeat_use_polling lvs_sync_daemon_interface
			use_vmac_addr garp_extra_if_vmac vmac_addr_list`),
		terms(textSeen, false, `version advert_int old_unicast_checksum down_timer_adverts mcast_dst_ip`),
		terms(textPreempt, false, `nopreempt preempt preempt_delay`),
		terms(textTrack, true, `track_interface track_script track_file track_process track_bfd`),
		terms(textStays, true, `virtual_routes virtual_rules`),
		map[string]kaTerm{
			"interface":                  {read: instanceInterface},
			"virtual_router_id":          {read: instanceVRID},
			"virtual_ipaddress":          {block: true, read: virtualAddresses},
			"virtual_ipaddress_excluded": {block: true, read: virtualAddresses},
			"unicast_src_ip":             {text: textUnicast, read: sourceAddress},
			"mcast_src_ip":               {text: textUnicast, read: sourceAddress},
			"unicast_peer":               {block: true, text: textUnicast, read: unicastPeers},
			"use_vmac":                   {text: textVMAC, read: virtualMAC},
			"vmac_xmit_base":             {text: textVMAC},
			"use_ipvlan":                 {text: textVMAC, read: virtualMAC},
			"authentication":             {block: true, secret: true, text: textSeen},
		},
	)
	kaSyncGroup = joined(notifyTerms,
		terms(textStays, false, `global_tracking sync_group_tracking_weight`),
		terms(textTrack, true, `track_interface track_script track_file track_process track_bfd`),
		map[string]kaTerm{"group": {block: true, read: members}},
	)
}

// notifyTerms are those of instances and sync groups.
var notifyTerms = joined(
	terms(textStays, false, `smtp_alert notify_priority_changes notify_deleted`),
	map[string]kaTerm{
		"notify":                     {read: notifyScript},
		"notify_master":              {read: notifyScript},
		"notify_backup":              {read: notifyScript},
		"notify_fault":               {read: notifyScript},
		"notify_stop":                {read: notifyScript},
		"notify_master_rx_lower_pri": {read: notifyScript},
	},
)

// kaGlobal are the settings of global_defs that mean something to vippin.
var kaGlobal = map[string]kaTerm{
	"notify_fifo":             {text: textNotifyFIFO},
	"notify_fifo_script":      {text: textNotifyFIFO},
	"vrrp_notify_fifo":        {text: textNotifyFIFO},
	"vrrp_notify_fifo_script": {text: textNotifyFIFO},
	"net_namespace":           {text: textNetns},
	"router_id":               {text: "stays in keepalived; what vippin calls this router is \"node\", by default the host name"},
	"vrrp_version":            {text: textSeen},
}
