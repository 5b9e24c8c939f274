// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// beyond is more than half of TCP's sequence numbers: what conntrack saw before
// looks later than what comes now.
const beyond = 2<<30 + 256<<20

// jumbo makes that a matter of seconds.
const jumbo = 9000

// ending is how a connection ends after a transfer on the fast path.
type ending struct {
	name     string
	six      bool
	transfer func(*traffic.Line, int64) (traffic.Bulk, error)
	end      func(*traffic.Line) error
	state    conntrack.TCPState // in which conntrack waits for the end of its entry
}

var endings = []ending{
	{"sender resets", false, (*traffic.Line).Put, (*traffic.Line).Reset, conntrack.TCPClose},
	{"receiver closes", true, (*traffic.Line).Get, (*traffic.Line).Close, conntrack.TCPTimeWait},
	{"sender closes", true, (*traffic.Line).Put, (*traffic.Line).Close, conntrack.TCPTimeWait},
	{"receiver resets", false, (*traffic.Line).Get, (*traffic.Line).Reset, conntrack.TCPClose},
}

// After more than 2 GiB of which conntrack saw next to nothing a FIN and a RST
// still are what they are to it: the entry closes, and NAT translates the segment,
// which it does not do with one that is invalid.
func TestFastEnds(t *testing.T) {
	s := setFast(t, "fastends", lab.Options{Hosts: 1, MTU: jumbo})
	for i, e := range endings {
		s.run(e.name, func(s *scene) {
			f := families[0]
			if e.six {
				f = families[1]
			}
			local, remote := netip.AddrPortFrom(f.of(lab.HostEnds(0)), uint16(4000+i)), lab.Port(f.of(lab.ServerFar), serverPort)
			line, err := traffic.OpenLine(s.ctx, s.Hosts[0].Do, local, remote)
			s.must(err)
			s.mostlyFast(s.RA, beyond/jumbo, func() {
				bulk, err := e.transfer(line, beyond)
				s.must(err)
				s.t.Logf("%d MiB in %s", bulk.Octets>>20, bulk.Took)
			})
			if state, err := s.tcpState(local, remote); err != nil || state != conntrack.TCPEstablished {
				s.t.Fatalf("before its end the connection is %v (%v)", state, err)
			}
			s.must(e.end(line))
			var state conntrack.TCPState
			if err := s.await("the end of the connection", func() (bool, error) {
				state, err = s.tcpState(local, remote)
				if errors.Is(err, unix.ENOENT) {
					return true, nil
				}
				return state == e.state, err
			}); err != nil {
				s.t.Errorf("%v: conntrack says %v", err, state)
			}
			if leaks, invalid := s.leaks(), s.invalid(s.RA); leaks != 0 || invalid != 0 {
				s.t.Errorf("%d packets from inside on the WAN, %d invalid", leaks, invalid)
			}
		})
	}
}

// tcpState is what ra's conntrack says of a connection from inside.
func (s *scene) tcpState(local, remote netip.AddrPort) (state conntrack.TCPState, err error) {
	flow, err := s.entry(6, local, remote)
	if err == nil && flow.TCP == nil {
		err = fmt.Errorf("conntrack says nothing of TCP about %s", local)
	}
	if err != nil {
		return 0, err
	}
	return flow.TCP.State, nil
}

// entry is ra's conntrack entry of a flow from inside.
func (s *scene) entry(proto uint8, local, remote netip.AddrPort) (flow *conntrack.Flow, err error) {
	err = s.RA.Do(func() error {
		conn, err := conntrack.Dial()
		if err != nil {
			return err
		}
		defer conn.Close()
		flow, err = conn.Get(conntrack.Tuple{
			Src: local.Addr(), Dst: remote.Addr(), Proto: proto, SrcPort: local.Port(), DstPort: remote.Port(),
		})
		return err
	})
	return flow, err
}
