// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vippin/policy"
	"vippin/test/lab"
)

// tracked is a keepalived that preempts, and follows vippin's word on whether to.
var tracked = lab.Keepalived{TrackReady: true}

// setReturn is setPair with keepalived tracking sync.ready_file: vippin is there
// first.
func setReturn(t *testing.T, name string) *pair {
	t.Helper()
	s := setScene(t, name, lab.Options{Firewall: true})
	s.must(s.AddSyncLink())
	p := &pair{scene: s}
	for _, r := range s.Routers() {
		s.start(r, p.config(r, onWAN))
	}
	s.must(s.StartRouters(s.ctx, tracked))
	p.awaitRole(s.RA, policy.RoleMaster)
	p.awaitRole(s.RB, policy.RoleBackup)
	p.awaitSync()
	return p
}

// boots starts what a router runs that was switched on, as its init system does:
// vippin, then keepalived.
func (p *pair) boots(r *lab.Router, config string) {
	p.t.Helper()
	p.start(r, config)
	_, err := p.StartKeepalived(r, tracked)
	p.must(err)
}

// isHeld tells whether vippin holds a router back, and checks that it did when the
// router did not have its VIP yet: that is looked at first.
func (p *pair) isHeld(r *lab.Router) bool {
	p.t.Helper()
	has, err := r.Holds(vip.V4)
	p.must(err)
	text, err := os.ReadFile(filepath.Join(r.RunDir(), "ready"))
	if !errors.Is(err, os.ErrNotExist) {
		p.must(err)
	}
	held := string(text) != "1\n"
	if held && has {
		p.t.Fatalf("%s has its VIP and is not ready\n%s", r.Name, p.Describe())
	}
	return held
}

// longEnough is how long keepalived would need to preempt, some times over.
var longEnough = 15 * advertInterval

// wantHeld checks what a router says of itself that is held back, and that it stays
// without its VIP for as long as is wanted.
func (p *pair) wantHeld(r *lab.Router, why string, lasting time.Duration) {
	p.t.Helper()
	began := time.Now()
	p.must(lab.Await(p.ctx, why+" on "+r.Name, func() (bool, error) {
		out, _, exit := p.Vippin(r, "ready", "RouterCore")
		if !p.isHeld(r) || exit != 1 {
			p.t.Fatalf("%s is not held back: exit %d, %s\n%s", r.Name, exit, out, p.Describe())
		}
		return strings.Contains(out, why) && time.Since(began) >= lasting, nil
	}))
}

// awaitReturn waits until a router is MASTER, and was ready before for the right
// reason.
func (p *pair) awaitReturn(r *lab.Router, why string) {
	p.t.Helper()
	p.must(lab.Await(p.ctx, r.Name+" being ready", func() (bool, error) { return !p.isHeld(r), nil }))
	p.must(r.VippinProc().AwaitLog(p.ctx, "group=RouterCore ready=true why=\""+why))
	p.awaitRole(r, policy.RoleMaster)
}

// The master reboots under load, and preempts when it comes back: not before it has
// every flow, and no flow is lost. Once its peer's daemon is stopped: it waits for
// ready_timeout, no longer. And when both were off and one is dead, the other one
// does not wait for it.
func TestRebootUnderLoad(t *testing.T) {
	t.Parallel()
	rounds := 1
	if full() {
		rounds = 10
	}
	p := setReturn(t, "reboot")
	troop := p.muster(120, 20000, false)
	p.awaitAgreement(troop.count)
	for range rounds {
		p.must(p.PowerOff(p.RA))
		p.awaitRole(p.RB, policy.RoleMaster)
		troop.allAnswered()
		p.must(p.Boot(p.ctx, p.RA))
		p.must(p.CutSync(p.RA)) // or it would be over too soon to be seen
		p.boots(p.RA, p.config(p.RA, onWAN))
		p.wantHeld(p.RA, "a MASTER is heard by its adverts", longEnough)
		p.must(p.PlugSync(p.RA))
		p.awaitReturn(p.RA, "all that rb has told of is here")
		troop.allAnswered()
		p.awaitSync()
		p.awaitAgreement(troop.count)
	}
	troop.dismiss()
	p.restartsAsMaster()
	p.givesUp()
	p.coldBoot()
}

// restartsAsMaster restarts the daemon of ra, which is MASTER: its priority stays.
func (p *pair) restartsAsMaster() {
	p.t.Helper()
	lowered := func() int { return strings.Count(p.RA.Keepalived().Log(), "from 160 to 110") }
	before := lowered()
	p.start(p.RA, p.config(p.RA, onWAN))
	p.awaitSync()
	if after := lowered(); after != before || !strings.Contains(p.RA.Keepalived().Log(), "from 110 to 160") {
		p.t.Errorf("the priority was lowered %d times while the daemon restarted\n%s", after-before, p.Describe())
	}
}

// givesUp reboots ra while the daemon of rb, which is MASTER then, is stopped.
func (p *pair) givesUp() {
	p.t.Helper()
	p.must(p.PowerOff(p.RA))
	p.awaitRole(p.RB, policy.RoleMaster)
	stopped := p.RB.VippinProc()
	p.must(stopped.Signal(syscall.SIGSTOP))
	p.must(p.Boot(p.ctx, p.RA))
	p.extra = "  ready_timeout: 2s\n"
	p.boots(p.RA, p.config(p.RA, onWAN))
	p.extra = ""
	p.wantHeld(p.RA, "a MASTER is heard by its adverts", 0)
	p.awaitReturn(p.RA, "flows of the MASTER may be missing, but 2s (sync.ready_timeout) have passed")
}

// coldBoot switches both routers off, and one of them on.
func (p *pair) coldBoot() {
	p.t.Helper()
	config := p.config(p.RB, onWAN)
	p.must(p.PowerOff(p.RA))
	p.must(p.PowerOff(p.RB))
	p.must(p.Boot(p.ctx, p.RB))
	p.boots(p.RB, config)
	p.awaitRole(p.RB, policy.RoleMaster)
	if source := p.source(p.Hosts[0], "tcp", netip.AddrPort{}, lab.ServerFar.V4); source.Addr() != vip.V4 {
		p.t.Errorf("new connections come from %s", source)
	}
	p.vippin(p.RB, "ready")
}
