// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	"vippin/policy"
)

// Port is where vippin listens when nobody says otherwise.
const Port = 7443

// syncPlan is the section sync of vippin.yaml.
type syncPlan struct {
	listen    netip.AddrPort
	peers     []Peer
	from      string   // where they are from
	protocols []string // nil: all
	ignore    []netip.Prefix
}

// makeSync decides how the routers reach each other and what they tell.
func (s *setup) makeSync() *syncPlan {
	p := &syncPlan{listen: s.options.Listen, peers: slices.Clone(s.options.Peers)}
	link := s.chooseLink()
	if link != nil {
		s.fromLink(p, link)
	}
	s.missing(p, link)
	p.protocols = s.syncProtocols()
	p.ignore = s.syncIgnore(link)
	return p
}

// chooseLink takes the one that conntrackd would begin with.
func (s *setup) chooseLink() *syncLink {
	if len(s.links) == 0 {
		return nil
	}
	chosen := s.links[0]
	for _, l := range s.links {
		if l.preferred {
			chosen = l
		}
	}
	for _, l := range s.links {
		if l != chosen {
			s.explain(inSync, l.at, l.String(),
				"vippin has one session with each peer: let routing or bonding choose the link")
		}
	}
	return chosen
}

// fromLink takes the addresses of a link: as they stand there, or of the
// interface's own address and the unicast adverts on it.
func (s *setup) fromLink(p *syncPlan, l *syncLink) {
	own, other, how := l.own, l.peer, fmt.Sprintf("%s:%d, %s", path.Base(l.at.file), l.at.line, l)
	vrrp := s.unicastOn(l.iface)
	if !own.IsValid() {
		own = s.addressOf(l.iface, other)
	}
	if vrrp != nil && !other.IsValid() {
		other = vrrp.peers[0]
		how += fmt.Sprintf("; the peer is where %s sends its adverts", vrrp.name)
	}
	if vrrp != nil && !own.IsValid() {
		own = vrrp.source
	}
	if !p.listen.IsValid() && own.IsValid() {
		p.listen = netip.AddrPortFrom(onLink(own, l.iface), Port)
		p.from = how
	}
	if len(p.peers) == 0 && other.IsValid() && other.Is6() == p.listen.Addr().Is6() {
		p.peers = []Peer{{Name: s.peerName(), Address: netip.AddrPortFrom(onLink(other, l.iface), Port)}}
	}
}

// peerName is one that this router does not have.
func (s *setup) peerName() string {
	if s.options.Node == "peer" {
		return "other-router"
	}
	return "peer"
}

// unicastOn finds a VRRP instance of an interface that sends to one other router.
func (s *setup) unicastOn(iface string) *instance {
	for _, i := range s.instances {
		if iface != "" && i.iface == iface && len(i.peers) > 0 {
			return i
		}
	}
	return nil
}

// addressOf is an interface's own address, of the family of another one.
func (s *setup) addressOf(iface string, like netip.Addr) netip.Addr {
	for _, prefix := range s.addresses[iface] {
		if addr := prefix.Addr(); !like.IsValid() || addr.Is6() == like.Is6() {
			return addr
		}
	}
	return netip.Addr{}
}

// onLink gives link-local addresses their zone.
func onLink(addr netip.Addr, iface string) netip.Addr {
	if addr.Is6() && addr.IsLinkLocalUnicast() && addr.Zone() == "" {
		return addr.WithZone(iface)
	}
	return addr
}

// missing says what is to be filled in.
func (s *setup) missing(p *syncPlan, l *syncLink) {
	at, where := place{}, ""
	if l != nil {
		at = l.at
		if l.iface != "" {
			where = " on " + l.iface
		}
	}
	if !p.listen.IsValid() {
		s.todo(inSync, at, "this router's own address%s is not in the files: add \"listen: ADDRESS:%d\", or migrate again with --listen ADDRESS", where, Port)
	}
	if len(p.peers) == 0 {
		s.todo(inSync, at, "the other router's address%s is not in the files: add it to peers, or migrate again with --peer NAME=ADDRESS", where)
	}
}

// syncProtocols turns the filter into a list of those that are replicated.
func (s *setup) syncProtocols() (list []string) {
	if !s.protocols.given {
		return nil
	}
	for _, name := range policy.SyncProtocols() {
		listed := slices.Contains(s.protocols.names, name)
		if s.protocols.accept == listed || name == "other" && !s.protocols.accept {
			list = append(list, name)
		}
	}
	if len(list) == 0 {
		s.warn(s.protocols.at, "the list lets no protocol through: all are replicated here")
	}
	if len(list) == len(policy.SyncProtocols()) {
		return nil
	}
	return list
}

// unused names the filters of a conntrackd that replicates nothing.
func (s *setup) unused() {
	const text = "nothing is replicated here, so there is nothing to leave out"
	if s.protocols.given {
		s.explain(inSync, s.protocols.at, "Protocol "+strings.Join(s.protocols.names, " "), text)
	}
	for _, ignored := range s.ignore {
		s.explain(inSync, ignored.at, ignored.setting, text)
	}
}

// syncIgnore leaves out the router's own addresses: its own connections are never
// replicated.
func (s *setup) syncIgnore(l *syncLink) (list []netip.Prefix) {
	own := map[netip.Addr]bool{}
	if l != nil {
		own[l.own] = true
	}
	for _, i := range s.instances {
		for _, v := range i.vips {
			own[v.addr] = true
		}
	}
	for _, prefixes := range s.addresses {
		for _, prefix := range prefixes {
			own[prefix.Addr()] = true
		}
	}
	listed := map[netip.Prefix]bool{}
	for _, ignored := range s.ignore {
		switch {
		case ignored.prefix.IsSingleIP() && own[ignored.prefix.Addr()]:
			s.explain(inSync, ignored.at, ignored.setting, "an address of this router: connections of the router itself are never replicated")
		case !listed[ignored.prefix]:
			listed[ignored.prefix] = true
			list = append(list, ignored.prefix)
		}
	}
	return list
}
