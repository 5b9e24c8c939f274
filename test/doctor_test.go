// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"vippin/policy"
	"vippin/policy/doctor"
	"vippin/test/lab"
)

// doctor is "vippin doctor -j"; findings are an answer too.
func (s *scene) doctor(r *lab.Router) (findings []doctor.Finding) {
	s.t.Helper()
	out, complaint, exit := s.Vippin(r, "doctor", "-j")
	if exit != 0 && exit != 1 {
		s.t.Fatalf("vippin doctor on %s: exit %d: %s", r.Name, exit, complaint)
	}
	s.must(json.Unmarshal([]byte(out), &findings))
	if healthy := doctor.Healthy(findings); healthy != (exit == 0) {
		s.t.Errorf("vippin doctor on %s: exit %d, and healthy is %t", r.Name, exit, healthy)
	}
	return findings
}

// wantHealthy wants no finding on the routers. What is wrong lasts: a pause of keepalived's,
// which looks like another MASTER for a moment, does not.
func (s *scene) wantHealthy(routers ...*lab.Router) {
	s.t.Helper()
	for _, r := range routers {
		findings := s.doctor(r)
		if !doctor.Healthy(findings) {
			s.t.Logf("%s: doctor said %+v", r.Name, findings)
			time.Sleep(20 * advertInterval) // doctor believes in an advert for 3, and a second
			findings = s.doctor(r)
		}
		for _, f := range findings {
			if f.State != doctor.OK {
				s.t.Errorf("%s is healthy, and doctor says %s: %s: %s", r.Name, f.State, f.Check, f.Found)
			}
		}
		if len(findings) < 10 {
			s.t.Errorf("doctor on %s looked at %d things only", r.Name, len(findings))
		}
	}
}

// sick is a finding that is expected.
type sick struct {
	check string
	state doctor.State
	found string // a part of it
	also  string // other checks that may complain of the same, in one string
}

// wantFound waits until doctor finds it, with a remedy, and nothing that is not
// expected.
func (s *scene) wantFound(r *lab.Router, want sick) doctor.Finding {
	s.t.Helper()
	var hit doctor.Finding
	var last []doctor.Finding
	ctx, cancel := context.WithTimeout(s.ctx, 2*patience)
	defer cancel()
	err := lab.Await(ctx, "the finding "+want.check, func() (bool, error) {
		time.Sleep(100 * time.Millisecond) // a process each time
		last = s.doctor(r)
		for _, f := range last {
			if f.Check == want.check && f.State == want.state && strings.Contains(f.Found, want.found) {
				hit = f
				return true, nil
			}
		}
		return false, nil
	})
	if err != nil {
		s.t.Fatalf("%v: want %+v on %s, got %+v", err, want, r.Name, last)
	}
	s.t.Logf("%s: %s: %s", r.Name, hit.Check, hit.Found)
	if hit.Remedy == "" {
		s.t.Errorf("no remedy for %q", hit.Found)
	}
	for _, f := range last {
		if f.State != doctor.OK && f.Check != want.check && !strings.Contains(want.also, f.Check) {
			s.t.Errorf("%s: doctor also says %s: %s: %s", r.Name, f.State, f.Check, f.Found)
		}
	}
	return hit
}

// awaitHealthy waits until what was provoked is no longer found.
func (s *scene) awaitHealthy(r *lab.Router) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, 2*patience)
	defer cancel()
	err := lab.Await(ctx, "a healthy "+r.Name, func() (bool, error) {
		time.Sleep(100 * time.Millisecond)
		return doctor.Healthy(s.doctor(r)), nil
	})
	if err != nil {
		s.wantHealthy(r)
		s.t.Fatal(err)
	}
}

// listened waits until the daemons have run for as long as doctor wants before
// it believes in silence.
func (s *scene) listened(routers ...*lab.Router) {
	s.t.Helper()
	for _, r := range routers {
		s.must(lab.Await(s.ctx, "some uptime", func() (bool, error) {
			time.Sleep(50 * time.Millisecond)
			return s.status(r).Uptime > 5.5, nil
		}))
	}
}

// Nothing is found where nothing is wrong: MASTER and BACKUP, with traffic,
// with and without virtual MACs, on the lowest tier.
func TestDoctorFindsNothingOnAHealthyRouter(t *testing.T) {
	for name, c := range map[string]struct {
		keepalived lab.Keepalived
		options    lab.Options
	}{
		"plain":       {lab.Keepalived{}, lab.Options{}},
		"VMAC":        {lab.Keepalived{VMAC: true}, lab.Options{}},
		"iptables":    {lab.Keepalived{Unicast: true}, lab.Options{Masquerade: lab.MasqueradeIPTables}},
		"without BTF": {lab.Keepalived{}, lab.Options{NoBTF: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.options.Hosts = 1
			s := setScene(t, "well"+strings.ToLower(name[:4]), c.options)
			s.must(s.StartRouters(s.ctx, c.keepalived))
			for _, r := range s.Routers() {
				s.start(r, onWAN)
			}
			s.awaitPeace()
			s.wantHealthy(s.RA, s.RB)
			for range 8 {
				s.sees(s.Hosts[0], lab.ServerFar, vip)
			}
			s.listened(s.RA, s.RB)
			s.wantHealthy(s.RA, s.RB)
			text, _, exit := s.Vippin(s.RB, "doctor")
			if tier := s.status(s.RB).Tier; exit != 0 || !strings.Contains(text, "dataplane "+tier) || strings.Contains(text, "no BTF") != c.options.NoBTF {
				t.Errorf("doctor for people: exit %d, want 0 and the tier %q named: %s", exit, tier, text)
			}
			// After a takeover, too.
			s.must(s.RA.Keepalived().Stop())
			s.awaitRole(s.RB, policy.RoleMaster)
			s.sees(s.Hosts[0], lab.ServerFar, vip)
			s.wantHealthy(s.RB)
		})
	}
}
