// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

const serverPort = 7000

var patience = lab.Slowly(10 * time.Second)

// onWAN is a configuration with one pin, on the lab's WAN.
const onWAN = `
groups:
  - {name: RouterCore, vrids: [20]}
pins:
  - {vlan: 2, interface: wan0, vips: [198.51.100.2, "2001:db8:100::2"], group: RouterCore}
`

// scene is a lab with a server that watches, for one test.
type scene struct {
	*lab.Lab
	t      *testing.T
	ctx    context.Context
	server *traffic.Server
}

// setScene builds a lab whose server listens on every address it has, TCP and
// UDP, and watches pings. Everything goes with the test.
func setScene(t *testing.T, name string, opts lab.Options) *scene {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lab.Slowly(4*time.Minute))
	t.Cleanup(cancel)
	s := &scene{t: t, ctx: ctx, Lab: lab.ForTest(t, name, opts)}
	listen := traffic.ServerOptions{Ping: true}
	ends := []lab.Ends{lab.ServerWAN, lab.ServerFar}
	if opts.WAN1 {
		ends = append(ends, lab.ServerWAN1)
	}
	for _, e := range ends {
		for _, addr := range []netip.Addr{e.V4, e.V6} {
			listen.TCP = append(listen.TCP, lab.Port(addr, serverPort))
			listen.UDP = append(listen.UDP, lab.Port(addr, serverPort))
		}
	}
	server, err := traffic.Serve(s.Server.Do, listen)
	s.must(err)
	s.server = server
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// must ends the test on an error, with what the lab's processes wrote last.
func (s *scene) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatalf("%v\n%s", err, s.Describe())
	}
}

// start runs vippin on a router and waits until it answers.
func (s *scene) start(r *lab.Router, config string) *lab.Proc {
	s.t.Helper()
	p, err := s.StartVippin(r, config)
	s.must(err)
	s.must(s.AwaitVippin(s.ctx, r))
	return p
}

// vippin runs a command that must succeed, and returns what it printed.
func (s *scene) vippin(r *lab.Router, args ...string) string {
	s.t.Helper()
	out, complaint, exit := s.Vippin(r, args...)
	if exit != 0 {
		s.t.Fatalf("vippin %s on %s: exit %d: %s\n%s", strings.Join(args, " "), r.Name, exit, complaint, s.Describe())
	}
	return out
}

// status is "vippin status -j"; degraded is an answer too.
func (s *scene) status(r *lab.Router) (status policy.Status) {
	s.t.Helper()
	out, complaint, exit := s.Vippin(r, "status", "-j")
	if exit != 0 && exit != 3 {
		s.t.Fatalf("vippin status on %s: exit %d: %s", r.Name, exit, complaint)
	}
	s.must(json.Unmarshal([]byte(out), &status))
	return status
}

// pin is the row of a VLAN in "vippin pin ls -j".
func (s *scene) pin(r *lab.Router, vlan uint16) policy.PinStatus {
	s.t.Helper()
	var rows []policy.PinStatus
	s.must(json.Unmarshal([]byte(s.vippin(r, "pin", "ls", "-j")), &rows))
	for _, row := range rows {
		if row.VLAN.Outer == vlan {
			return row
		}
	}
	s.t.Fatalf("no pin for VLAN %d in %+v", vlan, rows)
	return policy.PinStatus{}
}

// vrrp is "vippin vrrp -j".
func (s *scene) vrrp(r *lab.Router) (routers []policy.VRRPStatus) {
	s.t.Helper()
	s.must(json.Unmarshal([]byte(s.vippin(r, "vrrp", "-j")), &routers))
	return routers
}

// flows is "vippin flows -j".
func (s *scene) flows(r *lab.Router) (flows []policy.FlowStatus) {
	s.t.Helper()
	for line := range strings.Lines(s.vippin(r, "flows", "-j")) {
		var flow policy.FlowStatus
		s.must(json.Unmarshal([]byte(line), &flow))
		flows = append(flows, flow)
	}
	return flows
}

// awaitRole waits until the router's vippin gives its first group a role.
func (s *scene) awaitRole(r *lab.Router, want policy.Role) {
	s.t.Helper()
	s.must(lab.Await(s.ctx, want.String()+" on "+r.Name, func() (bool, error) {
		groups := s.status(r).Groups
		return len(groups) > 0 && groups[0].Role == want, nil
	}))
}

// source asks the server from which end it sees a host's new flow.
func (s *scene) source(from *lab.Node, proto string, local netip.AddrPort, to netip.Addr) netip.AddrPort {
	s.t.Helper()
	source, err := traffic.Ask(s.ctx, from.Do, proto, local, lab.Port(to, serverPort), patience)
	s.must(err)
	return source
}

// pingSource asks the server from which address and identifier it sees a ping.
func (s *scene) pingSource(from *lab.Node, id uint16, to netip.Addr) netip.AddrPort {
	s.t.Helper()
	pings, err := traffic.StartPings(s.ctx, from.Do, traffic.PingOptions{
		Remote: to, Identifiers: []uint16{id}, Name: fmt.Sprintf("%s-%s-%d", from.Name, to, time.Now().UnixNano()),
		Interval: 20 * time.Millisecond,
	})
	s.must(err)
	// The kernel answers, so the answer may be there before the server has looked.
	seen, err := s.server.AwaitStream(s.ctx, pings.Report(nil).Flows[0].ID, 1)
	if err == nil {
		err = pings.Await(s.ctx, 1)
	}
	pings.Stop(nil)
	s.must(err)
	return seen.Sources[0]
}
