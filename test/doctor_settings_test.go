// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vippin/policy"
	"vippin/policy/doctor"
	"vippin/test/lab"
)

// ill is one way to make a healthy router ill, and the cure.
type ill struct {
	name string
	harm func(s *scene)
	want sick
	cure func(s *scene)
}

// provoke goes through all of them on ra: each is found, and gone when cured.
func (s *scene) provoke(ills []ill) {
	s.t.Helper()
	for _, i := range ills {
		s.run(i.name, func(s *scene) {
			i.harm(s)
			s.wantFound(s.RA, i.want)
			i.cure(s)
			s.awaitHealthy(s.RA)
		})
	}
}

func sysctl(key, value string) func(s *scene) {
	return func(s *scene) { s.t.Helper(); s.must(s.RA.Sysctl(key, value)) }
}

// rules replaces ra's NAT rules.
func rules(rule string) func(s *scene) {
	return func(s *scene) {
		s.t.Helper()
		s.must(s.RA.NFT(s.ctx, fmt.Sprintf(`
table inet nat
delete table inet nat
table inet nat {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		%s
	}
}
`, rule)))
	}
}

const masqueradeWAN = `oifname "wan0" masquerade`

func configured(text string) func(s *scene) {
	return func(s *scene) { s.t.Helper(); s.reload(s.RA, text) }
}

func written(text string) func(s *scene) {
	return func(s *scene) { s.t.Helper(); s.must(s.WriteVippin(s.RA, text)) }
}

// withPin adds a pin to the configuration.
func withPin(text string) string { return onWAN + "  - " + text + "\n" }

// Settings, rules and processes beside vippin, on the MASTER.
func TestDoctorFindsSettings(t *testing.T) {
	t.Parallel()
	s := setScene(t, "settings", lab.Options{Hosts: 1})
	s.must(s.StartRouters(s.ctx, lab.Keepalived{}))
	daemon := s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	s.sees(s.Hosts[0], lab.ServerFar, vip)
	s.wantHealthy(s.RA)
	s.provoke([]ill{
		{"no IPv4 forwarding", sysctl("net/ipv4/ip_forward", "0"),
			sick{"forwarding", doctor.Error, "net.ipv4.ip_forward is 0", ""}, sysctl("net/ipv4/ip_forward", "1")},
		{"no IPv4 forwarding from one interface", sysctl("net/ipv4/conf/wan0/forwarding", "0"),
			sick{"forwarding", doctor.Error, "wan0", ""}, sysctl("net/ipv4/conf/wan0/forwarding", "1")},
		{"no IPv6 forwarding", sysctl("net/ipv6/conf/all/forwarding", "0"),
			sick{"forwarding", doctor.Error, "net.ipv6.conf.all.forwarding is 0", ""}, sysctl("net/ipv6/conf/all/forwarding", "1")},
		{"conntrack's events", sysctl("net/netfilter/nf_conntrack_events", "2"),
			sick{"conntrack_events", doctor.Warning, "is 2", ""}, sysctl("net/netfilter/nf_conntrack_events", "1")},
		{"no masquerade", rules(""), sick{"masquerade", doctor.Error, "no rule masquerades IPv4 or IPv6 to wan0", ""}, rules(masqueradeWAN)},
		{"masquerade elsewhere", rules(`oifname { "lan0", "ppp0" } masquerade`),
			sick{"masquerade", doctor.Error, "wan0", ""}, rules(masqueradeWAN)},
		{"SNAT to the VIP", rules(`oifname "wan*" ip saddr 192.168.101.99 snat ip to 198.51.100.2; ` + masqueradeWAN),
			sick{"snat", doctor.Warning, "198.51.100.2 of wan0", ""}, rules(masqueradeWAN)},
		{"a wrong file", written("pins: []\nnonsense: 1\n"), sick{"config", doctor.Error, "nonsense", ""}, written(onWAN)},
		{"a file not loaded", written(withPin(`{vlan: 20, interface: lan0, vips: [192.168.101.1]}`)),
			sick{"config", doctor.Warning, "not what the daemon has in force", "masquerade"}, written(onWAN)},
		{"an absent interface", configured(withPin(`{vlan: 20, interface: wan9, vips: [203.0.113.2]}`)),
			sick{"interfaces", doctor.Error, "wan9 (VLAN 20) is absent", "roles"}, configured(onWAN)},
		{"a VIP that keepalived does not have", configured(strings.Replace(onWAN, "198.51.100.2,", "198.51.100.2, 198.51.100.77,", 1)),
			sick{"vips", doctor.Error, "198.51.100.77", "roles adverts"}, configured(onWAN)},
		{"what this version cannot", configured(onWAN + "metrics: {listen: \"127.0.0.1:9999\"}\n"),
			sick{"status", doctor.Warning, "metrics.listen", ""}, configured(onWAN)},
		{"a dead daemon", func(s *scene) { s.must(daemon.Kill9()) },
			sick{"daemon", doctor.Warning, "no daemon runs", ""}, func(s *scene) { s.restart(daemon) }},
		{"programs taken off", (*scene).takeOff, sick{"programs", doctor.Error, "wan0", ""}, func(s *scene) { s.restart(daemon) }},
	})
	s.conntrackd()
	s.behindMounts(daemon)
}

// restart has the daemon in force again, and ra MASTER.
func (s *scene) restart(daemon *lab.Proc) {
	s.t.Helper()
	s.must(daemon.Restart())
	s.must(s.AwaitVippin(s.ctx, s.RA))
	s.awaitRole(s.RA, policy.RoleMaster)
}

// takeOff unpins the links of ra's WAN: nobody holds them any more.
func (s *scene) takeOff() {
	s.t.Helper()
	links, err := filepath.Glob(filepath.Join(s.RA.BPFFS, "links", "*-egress"))
	s.must(err)
	if len(links) == 0 {
		s.t.Skip("the programs are not attached by links here")
	}
	for _, link := range links {
		s.must(os.Remove(link))
	}
}

// conntrackd runs one beside, in its mode that only counts.
func (s *scene) conntrackd() {
	s.t.Helper()
	file := filepath.Join(s.RA.Dir, "conntrackd.conf")
	s.must(os.WriteFile(file, fmt.Appendf(nil, "General {\n\tHashSize 1024\n\tHashLimit 4096\n\tLockFile %s.lock\n\tUNIX {\n\t\tPath %s.ctl\n\t}\n}\nStats {\n\tLogFile off\n}\n",
		file, file), 0o600))
	p, err := s.RA.Start(s.RA.Dir, "conntrackd", nil, "conntrackd", "-C", file)
	s.must(err)
	s.wantFound(s.RA, sick{"conntrackd", doctor.Warning, fmt.Sprint(p.Pid()), ""})
	s.must(p.Kill9())
	s.awaitHealthy(s.RA)
}

// doctorIn is doctor in a mount namespace of its own, after a setup there.
func (s *scene) doctorIn(program, setup string) (findings []doctor.Finding) {
	s.t.Helper()
	out, err := s.RA.Run(s.ctx, "unshare", "--mount", "sh", "-ec",
		setup+"\nVIPPIN_RUN_DIR="+s.RA.RunDir()+" "+program+" -c "+s.RA.ConfigFile()+" doctor -j || [ $? = 1 ]")
	s.must(err)
	s.must(json.Unmarshal([]byte(out), &findings))
	return findings
}

// one picks the only finding of a check.
func (s *scene) one(findings []doctor.Finding, check string) doctor.Finding {
	s.t.Helper()
	var found []doctor.Finding
	for _, f := range findings {
		switch {
		case f.Check == check:
			found = append(found, f)
		case f.State != doctor.OK:
			s.t.Errorf("doctor also says %s: %s: %s", f.State, f.Check, f.Found)
		}
	}
	if len(found) != 1 {
		s.t.Fatalf("%d findings of %s: %+v", len(found), check, findings)
	}
	return found[0]
}

// behindMounts shows doctor files that this machine does not have.
func (s *scene) behindMounts(daemon *lab.Proc) {
	s.t.Helper()
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", daemon.Pid()))
	s.must(err)
	count := func(n string) string {
		return "echo " + n + " > " + s.RA.Dir + "/count; mount --bind " + s.RA.Dir + "/count /proc/sys/net/netfilter/nf_conntrack_count"
	}
	for _, c := range []struct {
		setup, check string
		state        doctor.State
		found        string
	}{
		{":", "conntrack_max", doctor.OK, "of 262144"},
		{count("230000"), "conntrack_max", doctor.Warning, "230000 of 262144"},
		{count("260000"), "conntrack_max", doctor.Error, "260000 of 262144"},
		{"mount -t tmpfs none /sys/kernel/btf", "tier", doctor.OK, "no BTF"},
		{"mount -t bpf bpf " + filepath.Dir(s.RA.BPFFS), "bpffs", doctor.Warning, "this command sees another file system"},
		{dmi("Microsoft Corporation", "Virtual Machine"), "hypervisor", doctor.OK, "Hyper-V"},
		{dmi("VMware, Inc.", "VMware20,1"), "hypervisor", doctor.OK, "VMware"},
		{dmi("QEMU", "Standard PC (Q35 + ICH9, 2009)"), "hypervisor", doctor.OK, "Proxmox/KVM"},
	} {
		f := s.one(s.doctorIn(program, c.setup), c.check)
		if f.State != c.state || !strings.Contains(f.Found, c.found) {
			s.t.Errorf("after %q doctor says %+v, want %s with %q", c.setup, f, c.state, c.found)
		}
	}
	s.privateDaemon(daemon, program)
}

// dmi gives the machine a manufacturer.
func dmi(vendor, product string) string {
	return fmt.Sprintf("mount -t tmpfs none /sys/class; mkdir -p /sys/class/dmi/id; echo '%s' > /sys/class/dmi/id/sys_vendor; echo '%s' > /sys/class/dmi/id/product_name",
		vendor, product)
}

// privateDaemon runs the daemon as "ip netns exec" does: with a /sys of its own.
func (s *scene) privateDaemon(daemon *lab.Proc, program string) {
	s.t.Helper()
	s.must(daemon.Stop())
	s.vippin(s.RA, "unload")
	p, err := s.RA.Start(s.RA.Dir, "private", []string{"VIPPIN_RUN_DIR=" + s.RA.RunDir()},
		"ip", "netns", "exec", s.RA.NS, program, "-c", s.RA.ConfigFile(), "run")
	s.must(err)
	s.must(lab.Await(s.ctx, "the private daemon", func() (bool, error) {
		_, _, exit := s.Vippin(s.RA, "status")
		return exit == 0, nil
	}))
	f := s.wantFound(s.RA, sick{"bpffs", doctor.Error, "not the host's", ""})
	if !strings.Contains(f.Remedy, "nsenter --net=") {
		s.t.Errorf("the remedy is %q", f.Remedy)
	}
	s.must(p.Stop())
	s.restart(daemon)
	s.awaitHealthy(s.RA)
}
