// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"testing"
	"time"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// Flows in a flow table keep the VIP under a rain of packets, while their pin is
// switched off and on, and while vippin is unloaded: its programs go in the moment in
// which the flows leave the flow table.
func TestFlowtableUnload(t *testing.T) {
	needFlowtable(t)
	for _, noBTF := range []bool{false, true} {
		t.Run(fmt.Sprintf("noBTF=%t", noBTF), func(t *testing.T) {
			s := setScene(t, "ftunload", lab.Options{SingleRouter: true, NoBTF: noBTF})
			s.addFlowtable(s.RA)
			s.setTimeouts(s.RA, udpAnswered, udpStream, 30*time.Second)
			daemon := s.start(s.RA, onWAN)
			s.awaitRole(s.RA, policy.RoleMaster)
			s.watchOwn()
			drives := s.drives(4000)
			line, err := traffic.OpenLine(s.ctx, s.Hosts[0].Do, lab.Port(lab.HostEnds(0).V4, 4001), lab.Port(lab.ServerFar.V4, serverPort))
			s.must(err)
			defer line.Close()
			for _, to := range []string{"off", "on", "off", "on"} {
				s.vippin(s.RA, "pin", to, "2")
				s.answers(50, drives...)
				_, err := line.Get(bulkOctets() / 4)
				s.must(err)
			}
			before := s.forwarded(s.RA)
			s.answers(100, drives...)
			if n := s.forwarded(s.RA) - before; n > 40 {
				t.Errorf("%d packets of some 800 took the forward chain", n)
			}
			s.must(daemon.Stop())
			s.answers(50, drives...)
			t.Log(s.vippin(s.RA, "unload"))
			s.answers(200, drives...)
			_, err = line.Put(bulkOctets() / 4)
			s.must(err)
			s.unmoved(drives)
		})
	}
}
