// SPDX-License-Identifier: Apache-2.0

// Command demo shows vippin's main job on real packets, in a lab of network
// namespaces: the flaw of masquerade on redundant routers, pinning switched on
// without touching a living connection, and the virtual IP following the
// master when the first router is killed.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

const (
	port     = 7000
	interval = 200 * time.Millisecond
	patience = 5 * time.Second
)

// The whole of what a router's owner writes. It is the same on both routers.
const config = `
groups:
  - {name: RouterCore, vrids: [20]}
pins:
  - {vlan: 2, interface: wan0, vips: [198.51.100.2, "2001:db8:100::2"], group: RouterCore, enabled: false}
`

func main() {
	if err := lab.Root(); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
	err := lab.Guard(func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 50*time.Second)
		defer cancel()
		return demo(ctx)
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}
}

// stage is what the story needs at hand.
type stage struct {
	ctx    context.Context
	lab    *lab.Lab
	server *traffic.Server
	began  time.Time
}

func demo(ctx context.Context) error {
	s := stage{ctx: ctx, began: time.Now()}
	steps := []func() error{s.build, s.flaw, s.pin, s.toggle, s.failover}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	s.say("\nThat was it, in %.0f s, on real packets between network namespaces of this machine.\n"+
		"Next: docs/vippin.yaml is a configuration to start from, \"vippin check\" says what it would do.",
		time.Since(s.began).Seconds())
	if s.lab == nil {
		return nil
	}
	return s.server.Close()
}

func (s *stage) say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

func (s *stage) build() (err error) {
	s.say(`
   inside host            two routers, keepalived           server
   192.168.101.11 ──┬── ra: own address 198.51.100.3 ──┬── 198.51.100.10
                    └── rb: own address 198.51.100.4 ──┘
                        virtual IP      198.51.100.2  (held by the MASTER)

Both routers masquerade the inside network. The lab is being built ...`)
	if s.lab, err = lab.New(s.ctx, "demo", lab.Options{}); err != nil {
		return err
	}
	ends := []netip.Addr{lab.ServerWAN.V4, lab.ServerWAN.V6}
	opts := traffic.ServerOptions{Ping: true}
	for _, end := range ends {
		opts.TCP = append(opts.TCP, lab.Port(end, port))
		opts.UDP = append(opts.UDP, lab.Port(end, port))
	}
	if s.server, err = traffic.Serve(s.lab.Server.Do, opts); err != nil {
		return err
	}
	if err := s.lab.StartRouters(s.ctx, lab.Keepalived{}); err != nil {
		return err
	}
	for _, r := range s.lab.Routers() {
		if _, err := s.lab.StartVippin(r, config); err != nil {
			return err
		}
		if err := s.lab.AwaitVippin(s.ctx, r); err != nil {
			return fmt.Errorf("%w\n%s", err, s.lab.Describe())
		}
	}
	return s.awaitRole(s.lab.RA, policy.RoleMaster)
}

func (s *stage) flaw() error {
	s.say("\n1. The flaw. ra is MASTER. An inside host talks to the server, and the server sees:")
	if err := s.show(lab.WAN.RA.V4); err != nil {
		return err
	}
	s.say("   That is ra's own address. When ra dies nobody answers for it, and every connection dies with it.")
	return nil
}

func (s *stage) pin() error {
	living, err := s.living("old", 5000)
	if err != nil {
		return err
	}
	defer living.Stop()
	s.say("\n2. Pinning on, while a connection is living from %s.", living.Report().Sources[0])
	if err := s.vippin(s.lab.RA, "pin", "on", "2"); err != nil {
		return err
	}
	if err := s.vippin(s.lab.RB, "pin", "on", "2"); err != nil {
		return err
	}
	s.say("   New connections now, as the server sees them:")
	if err := s.show(lab.WAN.VIP4); err != nil {
		return err
	}
	s.say("   That is the virtual IP. And the connection from before?")
	return s.untouched(living)
}

func (s *stage) toggle() error {
	living, err := s.living("pinned", 5001)
	if err != nil {
		return err
	}
	defer living.Stop()
	s.say("\n3. Off and on again, five times, under a living pinned connection from %s.", living.Report().Sources[0])
	for range 5 {
		for _, to := range []string{"off", "on"} {
			if _, complaint, exit := s.lab.Vippin(s.lab.RA, "pin", to, "2"); exit != 0 {
				return fmt.Errorf("vippin pin %s 2: %s", to, complaint)
			}
		}
	}
	return s.untouched(living)
}

func (s *stage) failover() error {
	s.say("\n4. ra is killed: its cables are dead, its processes too.")
	began := time.Now()
	if err := s.lab.HardKill(s.lab.RA); err != nil {
		return err
	}
	if err := s.awaitRole(s.lab.RB, policy.RoleMaster); err != nil {
		return err
	}
	s.say("   rb says MASTER after %d ms (VRRP's own detection takes about three adverts of 100 ms).",
		time.Since(began).Milliseconds())
	s.say("   New connections, now through rb, as the server sees them:")
	if err := s.show(lab.WAN.VIP4); err != nil {
		return err
	}
	s.say("   The same virtual IP: for the server nothing has moved.")
	return s.vippin(s.lab.RB, "pin", "ls")
}

// show asks the server by each protocol whom it sees, and insists on want.
func (s *stage) show(want netip.Addr) error {
	host := s.lab.Hosts[0]
	for _, ends := range [][2]netip.Addr{{lab.ServerWAN.V4, want}, {lab.ServerWAN.V6, sixth(want)}} {
		for _, proto := range []string{"tcp", "udp"} {
			source, err := traffic.Ask(s.ctx, host.Do, proto, netip.AddrPort{}, lab.Port(ends[0], port), patience)
			if err != nil {
				return err
			}
			s.say("      %-4s from %s", proto, source)
			if source.Addr() != ends[1] {
				return fmt.Errorf("%s arrived from %s, not from %s", proto, source.Addr(), ends[1])
			}
		}
	}
	return nil
}

// sixth is the IPv6 address that goes with an IPv4 one of the WAN.
func sixth(v4 netip.Addr) netip.Addr {
	if v4 == lab.WAN.VIP4 {
		return lab.WAN.VIP6
	}
	return lab.WAN.RA.V6
}

func (s *stage) living(name string, from uint16) (*traffic.Flow, error) {
	return traffic.StartFlow(s.ctx, s.lab.Hosts[0].Do, traffic.FlowOptions{
		ID: name, Proto: "tcp", Interval: interval,
		Local: lab.Port(lab.HostEnds(0).V4, from), Remote: lab.Port(lab.ServerWAN.V4, port),
	})
}

// untouched waits for a few more answers and insists on one source for all.
func (s *stage) untouched(flow *traffic.Flow) error {
	answered := flow.Report().Answered
	err := lab.Await(s.ctx, "answers on the living connection", func() (bool, error) {
		return flow.Report().Answered >= answered+3 || flow.Report().Broken(), nil
	})
	if err != nil {
		return err
	}
	report := flow.Report()
	if report.Broken() || report.Moved() {
		return fmt.Errorf("the living connection was touched: %v %v", report.Sources, report.Errors)
	}
	s.say("      tcp  from %s, still, %d requests answered", report.Sources[0], report.Answered)
	return nil
}

// vippin runs a command on a router and shows it as on its console.
func (s *stage) vippin(r *lab.Router, args ...string) error {
	out, complaint, exit := s.lab.Vippin(r, args...)
	line := r.Name + "# vippin"
	for _, a := range args {
		line += " " + a
	}
	s.say("   %s\n%s", line, indent(out))
	if exit != 0 {
		return fmt.Errorf("%s: %s", line, complaint)
	}
	return nil
}

func indent(text string) string {
	return "      " + strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\n      ")
}

// awaitRole waits until the router's own vippin names the role.
func (s *stage) awaitRole(r *lab.Router, want policy.Role) error {
	err := lab.Await(s.ctx, want.String()+" on "+r.Name, func() (bool, error) {
		out, _, _ := s.lab.Vippin(r, "status", "-j")
		var status policy.Status
		if json.Unmarshal([]byte(out), &status) != nil || len(status.Groups) == 0 {
			return false, nil
		}
		return status.Groups[0].Role == want, nil
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, s.lab.Describe())
	}
	return nil
}
