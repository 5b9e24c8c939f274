// SPDX-License-Identifier: Apache-2.0

package migrate

import "net/netip"

// What conntrackd.conf's settings are to vippin. Keys are in lower case.

const (
	textMode = "what the modes choose between is there always: each flow is acknowledged once it is in the other router's kernel, " +
		"and the whole table is sent after every connect; with \"mode: strict\" a client sees no connection that the other router has not got"
	textQueues = "nothing to size: the session is TCP with TLS; a queue that runs over is emptied, and the whole table sent instead"
	textCache  = "there is no cache: flows stand in the other router's kernel before it takes over, as with DisableExternalCache, " +
		"but with sync.standby_timeout, and there is nothing to commit"
	textPurge = "nothing is purged after a handover: flows end when the MASTER says so. Never let \"conntrackd -t\" run beside vippin: " +
		"it empties the kernel's table, with vippin's flows in it"
	textResync   = "always: the whole table is sent after every connect"
	textWindows  = "flows from the other router have liberal TCP windows: there are no sequence numbers to synchronize"
	textChecksum = "TLS protects each message"
	textMcast    = "vippin sends to no group: each router is named with its address and key in sync.peers"
	textPort     = "conntrackd's port is not taken over: vippin listens on TCP, 7443 here, so that neither is in the other's way"
	textNetlink  = "nothing to size: vippin's socket has 16 MiB, and whenever events were lost anyway it reads the whole table"
	textTable    = "conntrack's own table decides (net.netfilter.nf_conntrack_max); dataplane.max_flows bounds the pinned connections alone"
	textLog      = "vippin logs to stderr, which is the journal below systemd; log.level says how much"
	textStates   = "every state is replicated: a connection is of use from its first packet on"
	textPriority = "vippin's daemon needs no priority: packets do not wait for it"
	textFilter   = "vippin asks conntrack's events for what it needs"
)

var ctTop = map[string]ctTerm{
	"sync":    {block: true, in: ctSync},
	"general": {block: true, in: ctGeneral},
	"stats": {block: true, text: "vippin keeps no statistics of connections that have ended: " +
		"let conntrackd run on for that, with a Stats section and no Sync section"},
	"helper": {block: true, text: "vippin has no conntrack helpers in user space: " +
		"let conntrackd run on for these, with a Helper section and no Sync section"},
}

var ctSync = map[string]ctTerm{
	"mode":      {block: true, text: textMode, in: ctMode, read: mode},
	"multicast": {block: true, in: ctMulticast, read: channel},
	"udp":       {block: true, in: ctUnicast, read: channel},
	"tcp":       {block: true, in: ctUnicast, read: channel},
	"options": {block: true, in: map[string]ctTerm{
		"tcpwindowtracking": {values: 1, text: textWindows},
		"expectationsync":   {either: true, read: expectationSync},
	}},
	"refreshtime":   ctMode["refreshtime"],
	"cachetimeout":  ctMode["cachetimeout"],
	"committimeout": ctMode["committimeout"],
	"purgetimeout":  ctMode["purgetimeout"],
}

var ctMode = map[string]ctTerm{
	"resendqueuesize":      {values: 1, text: textQueues},
	"ackwindowsize":        {values: 1, text: textQueues},
	"committimeout":        {values: 1, text: textCache},
	"purgetimeout":         {values: 1, text: textPurge},
	"disableexternalcache": {values: 1, text: textCache},
	"disableinternalcache": {values: 1, text: "there is no cache: the kernel's table is the only one"},
	"startupresync":        {values: 1, text: textResync},
	"refreshtime":          {values: 1, text: "nothing is sent again and again: what has been acknowledged is there"},
	"cachetimeout":         {values: 1, text: "sync.standby_timeout says how long a flow stays on the other router without a word, an hour by default"},
}

// ctChannel is what all links have.
func ctChannel(more map[string]ctTerm) map[string]ctTerm {
	terms := map[string]ctTerm{
		"interface":        {values: 1, read: linkInterface},
		"sndsocketbuffer":  {values: 1, text: textQueues},
		"rcvsocketbuffer":  {values: 1, text: textQueues},
		"checksum":         {values: 1, text: textChecksum},
		"errorqueuelength": {values: 1, text: textQueues},

		"mcastsndsocketbuffer": {values: 1, text: textQueues}, // older names
		"mcastrcvsocketbuffer": {values: 1, text: textQueues},
	}
	for key, term := range more {
		terms[key] = term
	}
	return terms
}

func own(l *syncLink) *netip.Addr   { return &l.own }
func other(l *syncLink) *netip.Addr { return &l.peer }

var ctMulticast = ctChannel(map[string]ctTerm{
	"ipv4_address":   {values: 1, text: textMcast},
	"ipv6_address":   {values: 1, text: textMcast},
	"group":          {values: 1, text: textMcast},
	"ipv4_interface": {values: 1, read: linkAddress(own)},
	"ipv6_interface": {values: 1, read: linkAddress(own)},
})

var ctUnicast = ctChannel(map[string]ctTerm{
	"ipv4_address":             {values: 1, read: linkAddress(own)},
	"ipv6_address":             {values: 1, read: linkAddress(own)},
	"ipv4_destination_address": {values: 1, read: linkAddress(other)},
	"ipv6_destination_address": {values: 1, read: linkAddress(other)},
	"port":                     {values: 1, text: textPort},
})

var ctGeneral = map[string]ctTerm{
	"systemd":                    {values: 1, text: "vippin tells systemd by itself when it is ready, and serves its watchdog"},
	"nice":                       {values: 1, text: textPriority},
	"hashsize":                   {values: 1, text: textTable},
	"hashlimit":                  {values: 1, text: textTable, read: hashLimit},
	"logfile":                    {values: 1, text: textLog},
	"syslog":                     {values: 1, text: textLog},
	"lockfile":                   {values: 1, text: "run_dir holds vippin's lock"},
	"netlinkbuffersize":          {values: 1, text: textNetlink},
	"netlinkbuffersizemaxgrowth": {values: 1, text: textNetlink},
	"netlinkbuffersizemaxgrown":  {values: 1, text: textNetlink}, // older names
	"socketbuffersize":           {values: 1, text: textNetlink},
	"socketbuffersizemaxgrowth":  {values: 1, text: textNetlink},
	"socketbuffersizemaxgrown":   {values: 1, text: textNetlink},
	"netlinkoverrunresync":       {values: 1, text: textNetlink},
	"netlinkeventsreliable":      {values: 1, text: textNetlink},
	"pollsecs":                   {values: 1, text: "vippin always follows events"},
	"eventiterationlimit":        {values: 1, text: textNetlink},
	"unix": {block: true, in: map[string]ctTerm{
		"path":    {values: 1, text: "run_dir holds vippin's control socket; \"vippin status\" and \"vippin peers\" are what conntrackd -s was"},
		"backlog": {values: 1, text: "run_dir holds vippin's control socket; \"vippin status\" and \"vippin peers\" are what conntrackd -s was"},
	}},
	"filter": {block: true, text: textFilter, in: map[string]ctTerm{
		"protocol": {block: true, read: filterProtocols},
		"address":  {block: true, read: filterAddresses},
		"state":    {block: true, read: filterStates},
	}},
	"scheduler": {block: true, in: map[string]ctTerm{
		"type":     {values: 1, text: textPriority},
		"priority": {values: 1, text: textPriority},
	}},
}
