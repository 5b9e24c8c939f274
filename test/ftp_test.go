// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"crypto/rand"
	"net/netip"
	"testing"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// ftpHelper gives FTP control connections the kernel's helper. It works without
// vippin's doing: what it writes into them is the address that masquerade chose.
const ftpHelper = `
table inet helpers {
	ct helper ftp { type "ftp" protocol tcp; }
	chain prerouting {
		type filter hook prerouting priority filter; policy accept;
		iifname "lan0" tcp dport 21 ct helper set "ftp"
	}
}
`

// FTP downloads, active and passive, work through a pinned VLAN with the kernel's
// helper: control and data connections keep the router's own address, as the
// helper has told the server, and are counted. Other flows of the same host are
// pinned meanwhile.
func TestFTP(t *testing.T) {
	t.Parallel()
	s := setScene(t, "ftp", lab.Options{Hosts: 1, SingleRouter: true})
	s.must(s.RA.NFT(s.ctx, ftpHelper))
	file := make([]byte, 1<<20)
	_, _ = rand.Read(file) // never fails
	server, err := traffic.ServeFTP(s.Server.Do, map[string][]byte{"file": file}, lab.ServerFar.V4, lab.ServerFar.V6)
	s.must(err)
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	beside := map[netip.Addr]*traffic.Flow{}
	for _, to := range []netip.Addr{lab.ServerFar.V4, lab.ServerFar.V6} {
		beside[to] = s.flow(s.Hosts[0], "tcp", netip.AddrPort{}, lab.Port(to, serverPort))
		defer beside[to].Stop()
	}
	s.eachFamily(func(s *scene, to, vip, own netip.Addr) {
		modes := []traffic.FTPMode{traffic.FTPEprt, traffic.FTPEpsv}
		if to.Is4() {
			modes = append(modes, traffic.FTPPort, traffic.FTPPasv)
		}
		for _, mode := range modes {
			s.run(string(mode), func(s *scene) {
				before := len(server.Sources())
				g := s.count(s.RA, 2, func() {
					got, err := traffic.FTPGet(s.Hosts[0].Do, hostAddr(0, to), to, mode, "file")
					if err != nil || !bytes.Equal(got, file) {
						s.t.Errorf("got %d octets, want %d: %v", len(got), len(file), err)
					}
				})
				sources := server.Sources()[before:]
				if len(sources) != 2 || sources[0].Addr() != own || sources[1].Addr() != own {
					s.t.Errorf("control and data connections came from %v, want two of %s", sources, own)
				}
				// The flow beside it is pinned meanwhile.
				if len(g.unpinnedBy) != 1 || g.unpinnedBy["helper"] < 2 {
					s.t.Errorf("counted %v unpinned packets, want some for \"helper\" alone", g.unpinnedBy)
				}
			})
		}
		if got := s.goesOn(beside[to].Report)[0]; got.Addr() != vip {
			s.t.Errorf("the flow beside them arrives from %s, want %s", got, vip)
		}
		s.sees1(s.Hosts[0], to, vip)
	}, lab.ServerFar)
	for _, f := range s.flows(s.RA) {
		if f.Remote == lab.Port(lab.ServerFar.V4, 21).String() || f.Remote == lab.Port(lab.ServerFar.V6, 21).String() {
			t.Errorf("flows shows %+v", f)
		}
	}
}
