// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"net/netip"
	"strings"
)

// keepalived.conf (keepalived.conf(5)). vippin does not replace keepalived: most
// of what stands there stays.

// kaTerm is one keyword of keepalived's.
type kaTerm struct {
	block  bool // braces come after it
	secret bool // its values are not shown
	text   string
	read   func(k *keepalived, n node)
}

type keepalived struct {
	*setup
	instance *instance  // whose block is being read
	group    *syncGroup // likewise
}

// readKeepalived reads a keepalived.conf and the files that it includes.
func (s *setup) readKeepalived(src Source) {
	before := len(s.faults)
	nodes := s.expandKeepalived(src)
	if len(s.faults) > before {
		return
	}
	k := &keepalived{setup: s}
	k.statements(nodes, kaTop, "", inGroups)
}

// statements reads those of one block, which is called as in messages.
func (k *keepalived) statements(nodes []node, terms map[string]kaTerm, where string, in section) {
	for _, n := range nodes {
		term, known := terms[n.name()]
		switch {
		case known && term.block && !n.block:
			k.fault(n.at, "%s has no block: %q must follow it", n.text(), "{ … }")
			continue
		case known && !term.block && n.block:
			k.fault(n.at, "%s takes no block: take the braces out", n.text())
			continue
		case !known && n.block:
			k.fault(n.at, "unknown block %q%s: correct it, or take it out of a copy of the file and migrate that", n.text(), where)
			continue
		case !known:
			k.warn(n.at, "unknown setting %q%s: nothing was made of it", k.shown(n, term), where)
			continue
		}
		if term.text != "" {
			k.explain(in, n.at, k.shown(n, term), term.text)
		}
		if term.read != nil {
			term.read(k, n)
		}
	}
}

// shown is a setting without what others must not read.
func (k *keepalived) shown(n node, term kaTerm) string {
	if term.secret || n.name() == "auth_pass" {
		return n.name()
	}
	return shorten(n.text())
}

func vrrpInstance(k *keepalived, n node) {
	if len(n.words) != 2 {
		k.fault(n.at, "vrrp_instance needs one name before the braces")
		return
	}
	k.instance = &instance{at: n.at, name: n.words[1].text}
	k.instances = append(k.instances, k.instance)
	k.statements(n.children, kaInstance, " in vrrp_instance "+k.instance.name, inGroups)
}

func vrrpSyncGroup(k *keepalived, n node) {
	if len(n.words) != 2 {
		k.fault(n.at, "vrrp_sync_group needs one name before the braces")
		return
	}
	k.group = &syncGroup{at: n.at, name: n.words[1].text}
	k.syncGroups = append(k.syncGroups, k.group)
	k.statements(n.children, kaSyncGroup, " in vrrp_sync_group "+k.group.name, inGroups)
}

// passed names what a block of keepalived's own consists of.
func passed(text string) func(*keepalived, node) {
	return func(k *keepalived, n node) {
		for _, child := range n.children {
			term := kaGlobal[child.name()]
			if term.text == "" {
				term.text = text
			}
			k.explain(inGroups, child.at, child.name(), term.text)
		}
	}
}

func members(k *keepalived, n node) {
	for _, child := range n.children {
		for _, w := range child.words {
			k.group.members = append(k.group.members, w.text)
		}
	}
}

// one reads the only word after a keyword.
func (k *keepalived) one(n node) (string, bool) {
	if len(n.words) != 2 {
		k.warn(n.at, "%s needs one value", n.name())
		return "", false
	}
	return n.words[1].text, true
}

func instanceInterface(k *keepalived, n node) {
	name, ok := k.one(n)
	if ok && !isInterface(name) {
		k.warn(n.at, "interface %q is no name of an interface", name)
		return
	}
	k.instance.iface = name
}

func instanceVRID(k *keepalived, n node) {
	text, ok := k.one(n)
	vrid, valid := parseVRID(text)
	if ok && !valid {
		k.warn(n.at, "virtual_router_id %q is not 1 to 255", text)
		return
	}
	k.instance.vrid = vrid
}

// sourceAddress reads the address that adverts come from.
func sourceAddress(k *keepalived, n node) {
	text, ok := k.one(n)
	addr, err := netip.ParseAddr(text)
	if ok && err != nil {
		k.warn(n.at, "%s %q is no address", n.name(), text)
		return
	}
	k.instance.source = addr
}

// unicastPeers reads the other routers' addresses.
func unicastPeers(k *keepalived, n node) {
	for _, child := range n.children {
		skip := false
		for _, w := range child.words {
			addr, err := netip.ParseAddr(w.text)
			switch {
			case skip:
				skip = false
			case err == nil:
				k.instance.peers = append(k.instance.peers, addr)
			case w.text == "min_ttl", w.text == "max_ttl":
				skip = true
			default:
				k.warn(child.at, "unicast_peer %q is no address", w.text)
			}
		}
	}
}

// virtualMAC reads use_vmac, whose interface VIPs may name.
func virtualMAC(k *keepalived, n node) {
	for _, name := range n.args() {
		if isInterface(name) { // else it is the MAC
			k.instance.vmac = name
			return
		}
	}
}

// addressOptions are the words of virtual_ipaddress with the words that follow.
var addressOptions = map[string]int{
	"dev": 1, "brd": 1, "broadcast": 1, "scope": 1, "label": 1, "peer": 1, "preferred_lft": 1, "track_group": 1, "metric": 1,
	"use_vmac": 0, "home": 0, "-nodad": 0, "nodad": 0, "mngtmpaddr": 0, "noprefixroute": 0, "autojoin": 0, "no_track": 0,
}

// virtualAddresses reads one address a line, with options.
func virtualAddresses(k *keepalived, n node) {
	for _, child := range n.children {
		if child.block {
			k.fault(child.at, "unknown block %q in %s: an address is expected", child.text(), n.name())
			continue
		}
		words := child.words
		var texts []string
		dev := ""
		for len(words) > 0 {
			text := words[0].text
			values, option := addressOptions[text]
			switch {
			case option && len(words) > values:
				if text == "dev" {
					dev = words[1].text
				}
				words = words[values:]
			case option:
				k.warn(child.at, "%s in %s has no value", text, n.name())
			case len(texts) > 0 && !isAddress(text):
				k.warn(child.at, "unknown option %q of a virtual address of %s", text, k.instance.name)
			default:
				texts = append(texts, text)
			}
			words = words[1:]
		}
		if dev != "" && !isInterface(dev) {
			k.warn(child.at, "dev %q is no name of an interface", dev)
			continue
		}
		for _, text := range texts {
			k.addVIP(k.instance, text, dev, child.at)
		}
	}
}

func isAddress(text string) bool {
	_, ok := parseNetwork(text)
	return ok
}

// notifyScript looks for what served conntrackd.
func notifyScript(k *keepalived, n node) {
	text := textScript
	for _, arg := range n.args() {
		if isSyncScript(arg) {
			text = textSyncScript
		}
	}
	k.explain(inGroups, n.at, k.shown(n, kaTerm{}), text)
}

// isSyncScript says whether a script moves conntrackd's tables at a transition.
func isSyncScript(command string) bool {
	for _, word := range []string{"primary-backup", "conntrackd", "conntracksync", "conntrack-sync"} {
		if strings.Contains(command, word) {
			return true
		}
	}
	return false
}
