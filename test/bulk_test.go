// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"net/netip"
	"os"
	"testing"
	"time"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// frameMax is what one frame of the lab carries of TCP's data, at most: an MTU
// of 1500 octets without the two headers (IPv6's is the longer one).
const frameMax = 1500 - 20 - 20

// bulkOctets is how much goes each way: with VIPPIN_BULK=1g a gigabyte, with 1m a
// megabyte.
func bulkOctets() int64 {
	switch os.Getenv("VIPPIN_BULK") {
	case "1g":
		return 1 << 30
	case "1m":
		return 1 << 20
	}
	if testing.Short() {
		return 8 << 20
	}
	return 64 << 20
}

// Bulk data passes a pinned interface unchanged, and with the right checksums:
// in packets of up to 64 KiB; in packets that fit the wire; and in ones that the
// router has put together itself and takes apart behind the programs. Only the
// latter two carry checksums that the receivers look at.
func TestBulk(t *testing.T) {
	t.Parallel()
	for name, how := range map[string]struct {
		offloads lab.Offloads
		gro      bool // on the router alone
		large    bool // packets that the programs see
	}{
		"offloads on":  {offloads: lab.OffloadsOn, large: true},
		"offloads off": {offloads: lab.OffloadsOff},
		"gro alone":    {offloads: lab.OffloadsOff, gro: true, large: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := setScene(t, "bulk", lab.Options{Hosts: 1, SingleRouter: true, Offloads: how.offloads})
			if how.gro {
				for _, ifname := range s.RA.Devices() {
					_, err := s.RA.Run(s.ctx, "ethtool", "-K", ifname, "gro", "on")
					s.must(err)
				}
			}
			s.start(s.RA, onWAN)
			s.awaitRole(s.RA, policy.RoleMaster)
			defer s.noChecksumErrors() // also when a transfer has got stuck
			for _, ends := range [][2]netip.Addr{{lab.ServerFar.V4, vip.V4}, {lab.ServerFar.V6, vip.V6}} {
				s.bulk("put", traffic.Put, ends[0], ends[1], how.large)
				s.bulk("get", traffic.Get, ends[0], ends[1], how.large)
			}
		})
	}
}

// noChecksumErrors checks that nobody received a packet with a wrong checksum.
func (s *scene) noChecksumErrors() {
	s.t.Helper()
	for _, n := range []*lab.Node{s.Hosts[0], s.Server, s.RA.Node} {
		if wrong, err := traffic.ChecksumErrors(n.Do); err != nil || wrong != 0 {
			s.t.Errorf("%s received %d packets with a wrong checksum (%v)", n.Name, wrong, err)
		}
	}
}

type transfer func(context.Context, traffic.Enter, netip.AddrPort, int64) (traffic.Bulk, error)

// bulk transfers in one direction, and checks by the program's own counter how
// large the packets were that it rewrote. That the data is the same at both ends
// the transfer checks itself.
func (s *scene) bulk(name string, do transfer, to, want netip.Addr, large bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, lab.Slowly(time.Minute))
	defer cancel()
	octets := bulkOctets()
	before := s.counters(s.RA, 2)
	done, err := do(ctx, s.Hosts[0].Do, lab.Port(to, serverPort), octets)
	s.must(err)
	after := s.counters(s.RA, 2)
	if done.Source.Addr() != want {
		s.t.Errorf("%s arrives from %s, want %s", name, done.Source, want)
	}
	if after.TotalUnpinned() != before.TotalUnpinned() {
		s.t.Errorf("%s: unpinned packets: %v", name, after.Unpinned)
	}
	packets := after.Pinned - before.Pinned
	if name == "get" {
		packets = after.Returned - before.Returned
	}
	each := octets / int64(max(packets, 1))
	s.t.Logf("%s %d MiB by %s in %s: %d packets of %d octets", name, octets>>20, to, done.Took.Round(time.Millisecond), packets, each)
	if (each > frameMax) != large {
		s.t.Errorf("%s: the programs saw packets of %d octets, want more than %d: %t", name, each, frameMax, large)
	}
}
