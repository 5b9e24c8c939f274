// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"vippin/loader"
	"vippin/policy"
	"vippin/policy/doctor"
)

// doctorMachine is one that a healthy router with testConfig would have.
func doctorMachine(opts loader.MachineOptions) policy.Machine {
	m := policy.Machine{
		Kernel: "6.6.4", BTF: true, Loaded: true,
		Platform: policy.Platform{Vendor: "Microsoft Corporation", Product: "Virtual Machine"},
		Sysctls: map[string]string{
			"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1", "net/netfilter/nf_conntrack_events": "1",
			"net/netfilter/nf_conntrack_max": "262144", "net/netfilter/nf_conntrack_count": "1000",
		},
		NAT:   policy.NAT{Known: true, Rules: []policy.NATRule{{Where: "table inet nat, chain postrouting, handle 3", IPv4: true, IPv6: true, Masquerade: true}}},
		BPFFS: policy.BPFFS{Dir: opts.BPFFS, Known: true, Mounted: true, Ours: "0:39", Host: "0:39"},
	}
	if opts.DaemonPID != 0 {
		m.BPFFS.Daemon = "0:39"
	}
	return m
}

// doctorController is a daemon on whose router all is well.
func doctorController() *fakeController {
	status := sampleStatus()
	status.Warnings, status.Groups[0].Conflict, status.Pins = nil, "", slices.Clone(status.Pins[:2])
	status.Groups[0].Role = policy.RoleBackup
	status.Fastpath.Interfaces, status.Fastpath.Warnings = status.Fastpath.Interfaces[:1], nil
	status.UnpinnedWithoutPin = map[string]uint64{"source": 12}
	for i := range status.Pins {
		status.Pins[i].Role, status.Pins[i].PacketsForeign = policy.RoleBackup, 0
	}
	vrrp := sampleVRRP()[:1]
	vrrp[0].Role, vrrp[0].Conflict, vrrp[0].Ignored = policy.RoleBackup, "", nil
	vrrp[0].Routers = vrrp[0].Routers[1:]
	vrrp[0].Routers[0].LastSeen = 40
	return &fakeController{status: status, vrrp: vrrp}
}

func TestDoctorShowing(t *testing.T) {
	sick := func(opts loader.MachineOptions) policy.Machine {
		m := doctorMachine(opts)
		m.NAT.Rules[0].Out = []policy.OutMatch{{Names: []string{"ppp*"}}}
		m.Sysctls["net/netfilter/nf_conntrack_count"] = "220000"
		m.Conntrackd = []int{812}
		return m
	}
	for _, c := range []struct {
		name    string
		machine func(loader.MachineOptions) policy.Machine
		daemon  bool
		args    []string
		width   int
		code    int
	}{
		{"doctor", doctorMachine, true, []string{"doctor"}, 0, exitDone},
		{"doctor-json", doctorMachine, true, []string{"doctor", "-j"}, 0, exitDone},
		{"doctor-sick", sick, true, []string{"doctor"}, 0, exitFailed},
		{"doctor-sick-json", sick, true, []string{"doctor", "-j"}, 0, exitFailed},
		{"doctor-sick-terminal", sick, true, []string{"doctor"}, 72, exitFailed},
		{"doctor-nothing", func(o loader.MachineOptions) policy.Machine {
			return policy.Machine{Kernel: "6.1.0", BPFFS: policy.BPFFS{Dir: o.BPFFS}, Unread: []string{"NAT rules: permission denied"}}
		},
			false, []string{"doctor"}, 0, exitFailed},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newRig(t)
			b.width, b.machine = c.width, c.machine
			if c.daemon {
				b.serve(doctorController())
			}
			code, stdout, stderr := b.run(c.args...)
			if code != c.code {
				t.Errorf("exit code %d, want %d (%s)", code, c.code, stderr)
			}
			golden(t, c.name, []byte(stdout+stderr))
		})
	}
}

// What the verb asks for reaches the facts: the daemon's process, the bpffs of
// the configuration, the interfaces with pins, every macvlan and what is below it.
func TestDoctorAsksTheMachine(t *testing.T) {
	b := newRig(t)
	b.observed.Links = append(b.observed.Links, policy.Link{Index: 9, Name: "vrrp4.10", Kind: "macvlan", Parent: 3, Up: true},
		policy.Link{Index: 10, Name: "vrrp4.7", Kind: "macvlan", Parent: 2, Up: true})
	var asked loader.MachineOptions
	b.machine = func(opts loader.MachineOptions) policy.Machine { asked = opts; return doctorMachine(opts) }
	b.serve(doctorController())
	b.run("doctor")
	if asked.DaemonPID != os.Getpid() || asked.BPFFS != "/sys/fs/bpf/vippin-test" ||
		!slices.Equal(asked.Interfaces, []string{"eth0", "eth0.2", "eth0.20", "vrrp4.10", "vrrp4.7"}) {
		t.Errorf("asked for %+v", asked)
	}
}

// Without a daemon the maps say what is in force.
func TestDoctorWithoutDaemon(t *testing.T) {
	b := newRig(t)
	b.machine = doctorMachine
	b.run("load")
	code, stdout, _ := b.run("doctor", "-j")
	var findings []doctor.Finding
	if err := json.Unmarshal([]byte(stdout), &findings); err != nil {
		t.Fatal(err)
	}
	var complaints []string
	for _, f := range findings {
		if f.State != doctor.OK {
			complaints = append(complaints, f.Check)
		}
	}
	if code != exitFailed || !slices.Equal(complaints, []string{"daemon"}) {
		t.Errorf("exit %d, complaints %q", code, complaints)
	}
	b.configure(brokenConfig)
	if code, stdout, _ = b.run("doctor"); code != exitFailed || !hasLine(stdout, "error: config: DIR/vippin.yaml:3") {
		t.Errorf("exit %d: %s", code, stdout)
	}
}

// A file that is named and is not there is a mistake, not a finding.
func TestDoctorNeedsTheNamedFile(t *testing.T) {
	b := newRig(t)
	b.machine = doctorMachine
	if err := os.Remove(b.configFile()); err != nil {
		t.Fatal(err)
	}
	if code, stdout, stderr := b.run("doctor"); code != exitFailed || stdout != "" || stderr == "" {
		t.Errorf("exit %d: %q %q", code, stdout, stderr)
	}
}

func hasLine(text, begin string) bool {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, begin) {
			return true
		}
	}
	return false
}
