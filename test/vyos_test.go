// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vippin/policy"
	"vippin/test/lab"
)

// VyOS writes keepalived.conf itself, keeps the notify FIFO to itself, and has a
// program behind it that runs what "transition-script" says for a state, as it
// stands there: nothing is added, neither name nor state (keepalived-fifo.py in
// VyOS's vyos-1x). So the script names both. The health check has no weight.
func TestVyOS(t *testing.T) {
	s := setScene(t, "vyos", lab.Options{Hosts: 1})
	var watchers []*watcher
	keepalived := map[*lab.Router]*lab.Proc{}
	for _, r := range s.Routers() {
		watchers = append(watchers, s.startWatched(r, onWAN))
		keepalived[r] = s.startVyOS(r)
		if r == s.RA {
			s.awaitRole(s.RA, policy.RoleMaster)
		}
	}
	s.awaitPeace()
	s.wantWord(s.RA, "a transition script said MASTER (GROUP")
	s.wantWord(s.RB, "a transition script said BACKUP (GROUP")

	s.must(keepalived[s.RA].Stop())
	s.awaitRole(s.RB, policy.RoleMaster)
	s.wantWord(s.RB, "a transition script said MASTER (GROUP")
	s.wantWord(s.RA, "a transition script said STOP (GROUP")
	s.must(keepalived[s.RA].Restart()) // preempts
	s.awaitPeace()
	s.wantWord(s.RA, "a transition script said MASTER (GROUP")
	s.wantWord(s.RB, "a transition script said BACKUP (GROUP")

	for i, r := range s.Routers() {
		if log := watchers[i].proc.Log(); strings.Contains(log, "conflict") || !strings.Contains(log, "role") {
			t.Errorf("two takeovers, as %s saw them:\n%s", r.Name, log)
		}
		s.wantAlone(r)
		if log := keepalived[r].Log(); strings.Contains(log, "Unable to") || strings.Contains(log, "exited with status") {
			t.Errorf("keepalived on %s is not content:\n%s", r.Name, log)
		}
	}
}

// startVyOS starts keepalived with what VyOS generates for a group of each address
// family on both segments, a sync group with a health check and transition scripts,
// and conntrack-sync's own script; the program behind the FIFO is ours.
func (s *scene) startVyOS(r *lab.Router) *lab.Proc {
	s.t.Helper()
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", r.VippinProc().Pid()))
	s.must(err)
	at := func(name string) string { return filepath.Join(r.Dir, "vyos-"+name) }
	s.script(at("notify"), fmt.Sprintf("exec %s --run-dir %s vrrp-notify RouterCore \"$1\"", program, r.RunDir()))
	s.script(at("ready"), fmt.Sprintf("exec %s --run-dir %s -c %s ready RouterCore", program, r.RunDir(), r.ConfigFile()))
	s.script(at("conntracksync"), fmt.Sprintf("echo \"$*\" >> %s", at("conntracksync.log")))
	// SIGTERM, by which keepalived ends it, does not keep it from telling the last state.
	s.script(at("fifo"), fmt.Sprintf(`trap '' TERM
while read -r kind name state priority; do
	case "$kind $name $state" in
	'GROUP "RouterCore" MASTER') %[1]s MASTER ;;
	'GROUP "RouterCore" BACKUP') %[1]s BACKUP ;;
	'GROUP "RouterCore" FAULT') %[1]s FAULT ;;
	'GROUP "RouterCore" STOP') %[1]s STOP ;;
	esac
done < "$1"`, at("notify")))
	config := s.vyosConfig(r, at)
	s.must(os.WriteFile(at("keepalived.conf"), []byte(config), 0o644))
	p, err := r.Start(r.Dir, "keepalived", nil, "keepalived", "--dont-fork", "--log-console", "--log-detail", "--no-syslog",
		"-f", at("keepalived.conf"), "-p", at("parent.pid"), "-r", at("vrrp.pid"), "-c", at("checkers.pid"), "-b", at("bfd.pid"))
	s.must(err)
	return p
}

func (s *scene) script(path, body string) {
	s.t.Helper()
	s.must(os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755))
}

// vyosConfig has the blocks in VyOS's order: definitions, scripts, groups (VyOS's
// word for instances, each of one family), the sync group.
func (s *scene) vyosConfig(r *lab.Router, at func(string) string) string {
	priority := map[*lab.Router]int{s.RA: 200, s.RB: 100}[r]
	var text, members strings.Builder
	fmt.Fprintf(&text, `global_defs {
    dynamic_interfaces
    script_user root
    vrrp_version 3
    notify_fifo %s
    notify_fifo_script %s
}
vrrp_script healthcheck_sg_RouterCore {
    script "%s"
    interval 1
    fall 1
    rise 1
}
`, at("notify_fifo"), at("fifo"), at("ready"))
	for _, segment := range s.Segments() {
		for _, group := range []struct{ family, addresses string }{
			{"4", fmt.Sprintf("%s/%d", segment.VIP4, segment.Bits4)},
			{"6", fmt.Sprintf("%s/64\n        %s/64", segment.VIPLL, segment.VIP6)},
		} {
			name := strings.ToUpper(segment.Name) + "-V" + group.family
			fmt.Fprintf(&members, "        %s\n", name)
			fmt.Fprintf(&text, `vrrp_instance %s {
    state BACKUP
    interface %s
    virtual_router_id %d
    priority %d
    advert_int 1
    virtual_ipaddress {
        %s
    }
}
`, name, segment.Name, segment.VRID, priority, group.addresses)
		}
	}
	fmt.Fprintf(&text, `vrrp_sync_group RouterCore {
    group {
%s    }
    track_script {
        healthcheck_sg_RouterCore
    }
    notify_master "%[2]s master RouterCore"
    notify_backup "%[2]s backup RouterCore"
    notify_fault "%[2]s fault RouterCore"
}
`, members.String(), at("conntracksync"))
	return text.String()
}

// wantAlone wants the daemon not to have VyOS's FIFO open: it has one reader.
func (s *scene) wantAlone(r *lab.Router) {
	s.t.Helper()
	held, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", r.VippinProc().Pid()))
	s.must(err)
	if len(held) == 0 {
		s.t.Fatalf("vippin on %s has no open files", r.Name)
	}
	for _, fd := range held {
		if file, err := os.Readlink(fd); err == nil && strings.HasSuffix(file, "notify_fifo") {
			s.t.Errorf("vippin on %s has %s open", r.Name, file)
		}
	}
}
