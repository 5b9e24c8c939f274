// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"fmt"
	"slices"
	"strings"

	"vippin/policy"
)

// What vippin itself needs: configuration, daemon, kernel, bpffs, programs.

func checkConfig(v *view) []Finding {
	if v.Config == nil && len(v.ConfigErrors) == 0 {
		return nil
	}
	var found []Finding
	remedy := lines("# correct it as told; this lists everything that is wrong:", "vippin check")
	if v.NoConfig {
		remedy = lines("# write one (docs/vippin.yaml is an example with comments), or name it with -c; then:", "vippin check")
	}
	for _, text := range v.ConfigErrors {
		found = append(found, fault(remedy, "%s", text))
	}
	if v.Config == nil {
		return found
	}
	if v.Daemon == nil { // else its own warnings are of what is in force
		for _, text := range v.Plan.Warnings {
			if !strings.HasSuffix(text, waits) {
				found = append(found, warning(lines("# change it as told, then:", "vippin check"), "%s", text))
			}
		}
	}
	if v.Daemon != nil && !v.inForce() {
		found = append(found, warning("vippin reload", "%s is not what the daemon has in force", v.Config.File))
	}
	return unless(found, "%s is in order", v.Config.File)
}

// waits ends the warnings about pins without an interface, which have a check
// of their own.
const waits = "the pin waits for it"

// inForce compares the pins of the file with those of the daemon.
func (v *view) inForce() bool {
	if len(v.pins) != len(v.Pins) {
		return false
	}
	for _, p := range v.pins {
		if p.status == nil || !slices.Equal(p.status.VIPs, p.VIPs) || p.status.Group != p.group ||
			p.status.EnabledBy == policy.EnabledByConfig && p.EnabledBy == policy.EnabledByConfig && p.status.Enabled != p.Enabled {
			return false
		}
	}
	return true
}

func checkDaemon(v *view) []Finding {
	start := lines("systemctl start vippin", "# or, in the foreground:", "vippin run")
	switch {
	case v.Daemon != nil:
		return only(ok("vippin %s runs", v.Daemon.Status.Version))
	case v.DaemonError != "":
		return only(fault(lines("systemctl restart vippin", "journalctl -u vippin -n 50"), "the daemon does not answer: %s", v.DaemonError))
	case v.Machine.Loaded:
		return only(warning(start, "no daemon runs; what is loaded goes by this router's own adverts, and nothing removes the mappings "+
			"of ended connections; roles, adverts and conflicts cannot be looked at"))
	}
	if len(v.Machine.Unread) > 0 {
		return only(fault(start, "no daemon runs, and what is loaded cannot be seen"))
	}
	return only(fault(lines(start, "# it does not start?", "journalctl -u vippin -n 20"),
		"no daemon runs and nothing is loaded: every connection keeps the router's own address"))
}

// checkStatus repeats what "status" warns of.
func checkStatus(v *view) []Finding {
	if v.Daemon == nil {
		return nil
	}
	var found []Finding
	for _, text := range v.Daemon.Status.Warnings {
		if !strings.HasSuffix(text, waits) && !strings.HasPrefix(text, fastpathWord) {
			found = append(found, warning(lines("# change it as told, then:", "vippin check && vippin reload"), "%s", text))
		}
	}
	return found
}

func checkUnread(v *view) []Finding {
	var found []Finding
	for _, text := range v.Machine.Unread {
		found = append(found, warning(lines("# look again as root:", "sudo vippin doctor"), "cannot look at %s", text))
	}
	return found
}

func checkTier(v *view) []Finding {
	kernel := v.Machine.Kernel
	var found []Finding
	major, minor := release(kernel)
	if major != 0 && (major < 6 || major == 6 && minor < 1) {
		found = append(found, fault("# take Linux 6.1 or later: Debian 12, VyOS 1.5", "Linux %s is older than 6.1", kernel))
	}
	switch _, tracked := v.number("net/netfilter/nf_conntrack_max"); {
	case !tracked:
		found = append(found, fault("modprobe nf_conntrack", "the kernel does no connection tracking"))
	case v.sysctl("net/netfilter/nf_conntrack_events") == "":
		found = append(found, fault("# take a kernel built with CONFIG_NF_CONNTRACK_EVENTS=y",
			"Linux %s tells nobody of connections that end: mappings stay until they are looked through", kernel))
	}
	if len(found) > 0 {
		return found
	}
	return only(v.tier())
}

// tier names how the programs are attached, and what the kernel lacks for more.
func (v *view) tier() Finding {
	in := "dataplane " + v.Tier
	if v.Tier == "" {
		in = "no dataplane is seen"
	}
	text := fmt.Sprintf("%s, on Linux %s", in, v.Machine.Kernel)
	var remedy []string
	if strings.HasPrefix(v.Tier, "clsact") {
		text += "; tcx is there from Linux 6.6"
	}
	if !v.Machine.BTF {
		text += "; it has no BTF (/sys/kernel/btf/vmlinux): a table of nf_tables tells the programs what conntrack knows, and there is no fast path"
		remedy = []string{"# for more, take a kernel built with CONFIG_DEBUG_INFO_BTF=y; this one says:", `grep BTF "/boot/config-$(uname -r)"`}
	}
	f := ok("%s", text)
	f.Remedy = lines(remedy...)
	return f
}

func checkBPFFS(v *view) []Finding {
	b := v.Machine.BPFFS
	if !b.Known {
		return nil
	}
	differ := func(x, y string) bool { return x != "" && y != "" && x != y }
	enter := lines("# start it where the host's mounts are: no \"ip netns exec\", which mounts a /sys of its own, no container without",
		"# /sys/fs/bpf, no PrivateMounts. Into a network namespace:", "nsenter --net=/run/netns/NAME vippin run")
	switch {
	case differ(b.Daemon, b.Host):
		return only(fault(enter, "the daemon pins into a BPF file system (device %s) that is not the host's (%s) at %s: "+
			"with the daemon's mount namespace everything goes, and living connections break", b.Daemon, b.Host, b.Dir))
	case differ(b.Daemon, b.Ours) && b.Host == "":
		return only(fault(enter, "the daemon and this command see different file systems (devices %s and %s) at %s: "+
			"one of them is not the host's; what is pinned in a private one goes with it", b.Daemon, b.Ours, b.Dir))
	case differ(b.Ours, b.Host) || differ(b.Ours, b.Daemon):
		return only(warning(lines("# look from where the host's mounts are:", "nsenter --mount=/proc/1/ns/mnt vippin doctor"),
			"this command sees another file system (device %s) at %s than the host: what \"load\" pins here goes with this shell's mount namespace", b.Ours, b.Dir))
	case !b.Mounted && v.Daemon != nil && b.Daemon != "":
		return only(fault(enter, "no BPF file system is mounted at %s although the daemon runs", b.Dir))
	case !b.Mounted:
		return only(ok("no BPF file system at %s yet: \"run\" and \"load\" mount one", b.Dir))
	}
	return only(ok("%s is on the BPF file system that is to be expected", b.Dir))
}

// checkPrograms looks whether what is in force is attached.
func checkPrograms(v *view) []Finding {
	if v.Machine.Attached == nil {
		return nil
	}
	remedy := lines("systemctl restart vippin    # living connections stay pinned", "# or, without a daemon:", "vippin load")
	var found []Finding
	for _, p := range v.present() {
		if p.status == nil || p.status.Interface != p.link.Name {
			continue // not in force yet
		}
		if !v.Machine.Attached[p.link.Index] {
			found = append(found, fault(remedy, "the programs are not on %s: nothing is pinned there, and connections that were are broken", p.name()))
		}
	}
	for index, attached := range v.Machine.Attached {
		link, there := v.links[index]
		pinned := slices.ContainsFunc(v.pins, func(p pin) bool { return p.link != nil && p.link.Index == index })
		if there && !attached && !pinned {
			found = append(found, fault(remedy, "the programs are not on %s: its VRRP adverts are not seen", link.Name))
		}
	}
	slices.SortFunc(found, func(a, b Finding) int { return strings.Compare(a.Found, b.Found) })
	return unless(found, "the programs are on %d interfaces", len(v.Machine.Attached))
}

func checkInterfaces(v *view) []Finding {
	var found []Finding
	seen := make(map[string]bool)
	for _, p := range v.pins {
		if seen[p.Interface] && p.Interface != "" {
			continue
		}
		seen[p.Interface] = true
		switch {
		case p.link == nil:
			found = append(found, fault(v.makeInterface(p), "%s is absent: pin %s waits for it", p.absent(), p.Key()))
		case !p.link.Up && p.enabled():
			found = append(found, fault(lines("ip link set dev "+p.link.Name+" up", "# and look at cable, switch port, or the VM's network adapter"),
				"%s is down or has no carrier", p.name()))
		}
	}
	if len(v.pins) == 0 {
		return found
	}
	return unless(found, "the interfaces of all pins are there and up")
}

// absent names an interface that may have no name.
func (p pin) absent() string {
	if p.Interface == "" {
		return "an interface with VLAN " + p.VLAN.String()
	}
	return p.name()
}

// makeInterface says how to add a VLAN.
func (v *view) makeInterface(p pin) string {
	lower, _, _ := strings.Cut(p.Interface, ".")
	known := slices.ContainsFunc(v.Observed.Links, func(l policy.Link) bool { return l.Name == lower })
	if !known || lower == p.Interface || p.VLAN.Inner != 0 || p.VLAN.Outer == 0 {
		return lines("# create the interface, or correct \"interface\" or \"vlan\" of the pin in the configuration; these are there:", "ip -br link")
	}
	return lines(fmt.Sprintf("ip link add link %s name %s type vlan id %d", lower, p.Interface, p.VLAN.Outer), "ip link set dev "+p.Interface+" up",
		"# and give it its addresses, in the configuration of the distribution too")
}
