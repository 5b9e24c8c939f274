// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
)

// VyOS's commands, as "show configuration commands" prints them.

// vyTerm is the end of a command that means something.
type vyTerm struct {
	path   string // words; * stands for one, ** at the end for any that follow
	secret bool   // what stands for * and ** is not shown
	text   string
	read   func(v *vyos, args []string, at place) // args stand for * and **
}

type vyos struct {
	*setup
	file     string
	edit     []string // path of "edit"
	groups   map[string]*instance
	synced   map[string]*syncGroup
	rules    map[string]*natRule
	channels map[string]*syncLink
	listen   []netip.Addr
	failover string // the sync group that conntrack-sync follows
	at       place  // of failover
	others   []string
	other    map[string]*elsewhere // by what they are about
}

// elsewhere is commands that are about something else.
type elsewhere struct {
	first, count int
}

func (s *setup) readVyOS(src Source) {
	v := &vyos{
		setup: s, file: src.Name, groups: map[string]*instance{}, synced: map[string]*syncGroup{},
		rules: map[string]*natRule{}, channels: map[string]*syncLink{}, other: map[string]*elsewhere{},
	}
	at := place{file: src.Name}
	for raw := range bytes.Lines(src.Data) {
		at.line++
		words, ok := commandWords(string(bytes.TrimRight(raw, "\r\n")))
		switch {
		case !ok:
			s.fault(at, "a quote begins and does not end on this line: close it")
		case len(words) > 0:
			v.command(words, at)
		}
	}
	v.finish()
}

// commandWords takes a command apart as the shell does.
func commandWords(line string) ([]string, bool) {
	r := treeReader{syntax: syntax{quotes: true}}
	var words []string
	for {
		line = strings.TrimLeft(line, " \t\v\f\r")
		if line == "" || strings.HasPrefix(line, "#") && len(words) == 0 {
			return words, true
		}
		raw, text, _, ok := r.word(line)
		if !ok {
			return nil, false
		}
		words = append(words, text)
		line = line[len(raw):]
	}
}

func (v *vyos) command(words []string, at place) {
	switch words[0] {
	case "set":
		path := words[1:]
		if len(path) == 0 || !vyTopLevel[path[0]] { // no level below those of use begins with such a word
			path = append(append([]string{}, v.edit...), path...)
		}
		if len(path) > 0 {
			v.set(path, at)
		}
	case "edit":
		v.edit = append(v.edit, words[1:]...)
	case "up":
		v.edit = v.edit[:max(len(v.edit)-1, 0)]
	case "top", "exit":
		v.edit = nil
	case "configure", "commit", "save":
	default:
		v.warn(at, "%q is no \"set\" command: nothing was made of it (give what \"show configuration commands\" prints)", words[0])
	}
}

// set takes one command by what it is about.
func (v *vyos) set(path []string, at place) {
	about := path[0]
	switch {
	case about == "interfaces":
		v.address(path, at)
		return
	case about == "service" && len(path) > 1:
		about = "service " + path[1]
	case about == "nat" && len(path) > 1, about == "nat66" && len(path) > 1:
		about += " " + path[1]
	case about == "high-availability" && len(path) > 1:
		about += " " + path[1]
	}
	terms, ours := vyTerms[about]
	switch {
	case !ours && !vyTopLevel[path[0]]:
		v.warn(at, "unknown setting %q: nothing was made of it", path[0])
	case !ours:
		v.elsewhere(about, at)
	default:
		v.replicates = v.replicates || path[0] == "service"
		v.term(terms, path, strings.Count(about, " ")+1, at)
	}
}

// elsewhere counts what migrate has no use for.
func (v *vyos) elsewhere(about string, at place) {
	seen := v.other[about]
	if seen == nil {
		seen = &elsewhere{first: at.line}
		v.other[about] = seen
		v.others = append(v.others, about)
	}
	seen.count++
}

// term finds what a command means; its first words have been dealt with.
func (v *vyos) term(terms []vyTerm, path []string, skip int, at place) {
	for _, term := range terms {
		args, ok := matched(strings.Fields(term.path), path[skip:])
		if !ok {
			continue
		}
		if term.text != "" {
			v.explain(v.sectionOf(path), at, v.shown(term, path, len(args), skip), term.text)
		}
		if term.read != nil {
			term.read(v, args, at)
		}
		return
	}
	v.warn(at, "unknown setting %q: nothing was made of it", shorten(strings.Join(path, " ")))
}

func (v *vyos) sectionOf(path []string) section {
	switch path[0] {
	case "service":
		return inSync
	case "nat", "nat66":
		return inPins
	}
	return inGroups
}

// shown is a command without the words that all of its kind begin with.
func (v *vyos) shown(term vyTerm, path []string, args, skip int) string {
	path = path[skip:]
	if term.secret {
		path = path[:len(path)-args+1]
	}
	return shorten(strings.Join(path, " "))
}

// matched holds a path against a pattern.
func matched(pattern, path []string) (args []string, ok bool) {
	for i, want := range pattern {
		switch {
		case want == "**":
			return append(args, path[i:]...), true
		case i >= len(path), want != "*" && want != path[i]:
			return nil, false
		case want == "*":
			args = append(args, path[i])
		}
	}
	return args, len(path) == len(pattern)
}

// group finds or makes a VRRP instance, which VyOS calls a group.
func (v *vyos) group(name string, at place) *instance {
	i := v.groups[name]
	if i == nil {
		i = &instance{at: at, name: name}
		v.groups[name] = i
		v.instances = append(v.instances, i)
	}
	return i
}

func (v *vyos) syncGroup(name string, at place) *syncGroup {
	g := v.synced[name]
	if g == nil {
		g = &syncGroup{at: at, name: name}
		v.synced[name] = g
		v.syncGroups = append(v.syncGroups, g)
	}
	return g
}

func (v *vyos) channel(name string, at place) *syncLink {
	l := v.channels[name]
	if l == nil {
		l = &syncLink{at: at, kind: "Multicast", iface: name}
		if !isInterface(name) {
			v.warn(at, "interface %q is no name of an interface", name)
			l.iface = ""
		}
		v.channels[name] = l
		v.links = append(v.links, l)
	}
	return l
}

func (v *vyos) rule(number string, v6 bool, at place) *natRule {
	key := fmt.Sprint(v6, number)
	r := v.rules[key]
	if r == nil {
		r = &natRule{at: at, number: number, v6: v6}
		v.rules[key] = r
		v.nat = append(v.nat, r)
	}
	return r
}

// address notes an interface's own address; the rest of interfaces is of no use.
func (v *vyos) address(path []string, at place) {
	name, rest := "", path[1:]
	if len(rest) > 1 {
		name, rest = rest[1], rest[2:]
	}
	for len(rest) > 2 && (rest[0] == "vif" || rest[0] == "vif-s" || rest[0] == "vif-c") {
		name += "." + rest[1]
		rest = rest[2:]
	}
	if len(rest) == 2 && rest[0] == "address" && isInterface(name) {
		if prefix, err := netip.ParsePrefix(rest[1]); err == nil { // else "dhcp" or the like
			v.addresses[name] = append(v.addresses[name], prefix)
			return
		}
	}
	v.elsewhere("interfaces, other than addresses", at)
}

// finish looks at what one command alone does not tell.
func (v *vyos) finish() {
	for _, l := range v.links {
		for _, addr := range v.listen {
			if !l.own.IsValid() || v.isOn(addr, l.iface) {
				l.own = addr
			}
		}
	}
	switch _, known := v.synced[v.failover]; {
	case v.failover == "":
	case known:
		v.explain(inSync, v.at, "failover-mechanism vrrp sync-group "+v.failover,
			"vippin sees itself which router is MASTER, of every group: nothing has to tell it")
	default:
		v.warn(v.at, "conntrack-sync follows the sync-group %q, which is not there", v.failover)
	}
	for _, about := range v.others {
		seen := v.other[about]
		setting := about
		if seen.count > 1 {
			setting = fmt.Sprintf("%s: %d commands", about, seen.count)
		}
		v.explain(inGeneral, place{v.file, seen.first}, setting, "not looked at: vippin has nothing to do with it")
	}
}

// isOn says whether an address is one of an interface's.
func (s *setup) isOn(addr netip.Addr, iface string) bool {
	for _, prefix := range s.addresses[iface] {
		if prefix.Addr() == addr {
			return true
		}
	}
	return false
}
