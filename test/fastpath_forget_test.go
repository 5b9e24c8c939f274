// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"testing"

	"vippin/loader/conntrack"
	"vippin/test/lab"
)

// Conntrack forgets a busy flow (conntrack -D, an early drop): its packets take the
// stack at once, which knows it again from the first one on. Else they would bypass
// it for as long as the flow's entries are valid, 30 s and more than a test waits.
func TestFastpathForgetsWithConntrack(t *testing.T) {
	s := setFast(t, "fforget", lab.Options{Hosts: 1})
	flow := s.busy()
	local, remote := lab.Port(lab.HostEnds(0).V4, 6000), lab.Port(lab.ServerWAN.V4, serverPort)
	for range 3 {
		s.vippin(s.RA, "pin", "off", "2") // learnt anew, the entries are valid for long
		s.vippin(s.RA, "pin", "on", "2")
		s.settle(s.RA, flow)
		was, err := s.entry(17, local, remote)
		s.must(err)
		s.must(s.RA.Do(func() error {
			conn, err := conntrack.Dial()
			if err != nil {
				return err
			}
			defer conn.Close()
			results, err := conn.Delete([]conntrack.Ref{{Orig: was.Orig}})
			return errors.Join(append(results, err)...)
		}))
		s.must(s.await("conntrack to know the flow again", func() (bool, error) {
			_, err := s.entry(17, local, remote)
			if errors.Is(err, conntrack.ErrNotExist) {
				return false, nil
			}
			return err == nil, err
		}))
		s.answers(100, flow)
	}
	s.wantAnswered(flow, 10) // answers on the way when conntrack or the fast path forgets
}
