// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"vippin/policy"
)

// MachineOptions says what Machine looks at besides what every router has.
type MachineOptions struct {
	BPFFS      string   // directory of pinned maps, DefaultBPFFS if empty
	DaemonPID  int      // of the running daemon, 0 = none, or not known
	Interfaces []string // whose settings are read
}

// Machine reads what this router says of itself, in the network namespace of
// the calling thread, which must not change meanwhile. It changes nothing, and
// what it cannot read is named in the result.
func Machine(opts MachineOptions) policy.Machine {
	r := machineReader{root: osRoot(), pid: opts.DaemonPID}
	m := r.files(opts)
	mounted, err := onBPFFS(m.BPFFS.Dir)
	if err != nil {
		m.Unread = append(m.Unread, fmt.Sprintf("the file system of %s: %v", m.BPFFS.Dir, errors.Unwrap(err)))
	}
	m.BPFFS.Known, m.BPFFS.Mounted = err == nil, mounted
	if links, err := undisturbed(netlink.LinkList); err != nil {
		m.Unread = append(m.Unread, fmt.Sprintf("packets of links, and what is around virtual MACs: list links: %v", err))
	} else {
		m.Counters = linkCounters(links)
		if err := lookAbove(&m, links); err != nil {
			m.Unread = append(m.Unread, fmt.Sprintf("what is around virtual MACs: %v", err))
		}
	}
	rules, tables, err := readRuleset()
	if err != nil {
		m.Unread = append(m.Unread, fmt.Sprintf("NAT rules: %v", err))
	} else {
		m.NAT.Known, m.NAT.Rules, m.Flowtables = true, rules, tables
	}
	m.Loaded, m.Attached, err = attachedTo(m.BPFFS.Dir)
	if err != nil {
		m.Unread = append(m.Unread, fmt.Sprintf("the loaded dataplane: %v", err))
	}
	return m
}

func osRoot() fs.FS { return os.DirFS("/") }

// machineReader reads files below root, as /proc and /sys have them.
type machineReader struct {
	root fs.FS
	pid  int // of the daemon
}

// files is the part of Machine that is read from files.
func (r machineReader) files(opts MachineOptions) policy.Machine {
	dir := path.Clean(opts.BPFFS)
	if opts.BPFFS == "" {
		dir = DefaultBPFFS
	}
	m := policy.Machine{
		Kernel:  r.line("proc/sys/kernel/osrelease"),
		BTF:     r.exists("sys/kernel/btf/vmlinux"),
		Sysctls: r.sysctls(opts.Interfaces),
		Platform: policy.Platform{
			Vendor: r.line("sys/class/dmi/id/sys_vendor"), Product: r.line("sys/class/dmi/id/product_name"),
			BIOS: r.line("sys/class/dmi/id/bios_vendor"), Chassis: r.line("sys/class/dmi/id/chassis_asset_tag"),
		},
		RPFDrops:   r.snmp("proc/thread-self/net/netstat", "TcpExt", "IPReversePathFilter"),
		Conntrackd: r.processes("conntrackd"),
		BPFFS: policy.BPFFS{
			Dir: dir, Ours: r.deviceOf("proc/thread-self/mountinfo", dir), Host: r.deviceOf("proc/1/mountinfo", dir),
		},
	}
	if r.pid != 0 {
		m.BPFFS.Daemon = r.deviceOf(fmt.Sprintf("proc/%d/mountinfo", r.pid), dir)
	}
	m.NAT.Legacy = r.legacyNAT()
	return m
}

// legacyNAT lists the families with a nat table of legacy iptables.
func (r machineReader) legacyNAT() (families []string) {
	for family, file := range map[string]string{"IPv4": "ip_tables_names", "IPv6": "ip6_tables_names"} {
		if slices.Contains(strings.Fields(r.text("proc/thread-self/net/"+file)), "nat") {
			families = append(families, family)
		}
	}
	slices.Sort(families)
	return families
}

func (r machineReader) text(name string) string {
	data, err := fs.ReadFile(r.root, name)
	if err != nil {
		return ""
	}
	return string(data)
}

func (r machineReader) line(name string) string { return strings.TrimSpace(r.text(name)) }

func (r machineReader) exists(name string) bool {
	_, err := fs.Stat(r.root, name)
	return err == nil
}

// sysctls reads what bears on forwarding and conntrack, everywhere and on the
// given interfaces.
func (r machineReader) sysctls(interfaces []string) map[string]string {
	names := []string{
		"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv6/conf/all/disable_ipv6", "net/ipv4/conf/all/rp_filter",
		"net/ipv4/conf/all/arp_ignore", "net/ipv4/conf/all/arp_announce",
		"net/netfilter/nf_conntrack_max", "net/netfilter/nf_conntrack_count", "net/netfilter/nf_conntrack_events",
		"net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables", "net/bridge/bridge-nf-filter-vlan-tagged",
	}
	for _, ifname := range interfaces {
		names = append(names, "net/ipv4/conf/"+ifname+"/forwarding", "net/ipv4/conf/"+ifname+"/rp_filter",
			"net/ipv4/conf/"+ifname+"/arp_ignore", "net/ipv4/conf/"+ifname+"/arp_announce",
			"net/ipv6/conf/"+ifname+"/disable_ipv6", "net/ipv6/conf/"+ifname+"/use_oif_addrs_only")
	}
	return r.values(names)
}

// values reads settings; those that are not there are left out.
func (r machineReader) values(names []string) map[string]string {
	values := make(map[string]string)
	for _, name := range names {
		if !fs.ValidPath(name) {
			continue // an interface's name from a configuration file
		}
		if value := r.line("proc/sys/" + name); value != "" {
			values[name] = value
		}
	}
	return values
}

// snmp finds a counter in a file of header and value lines, as RFC 1213's are
// shown below /proc/net.
func (r machineReader) snmp(name, group, counter string) uint64 {
	var header []string
	for line := range strings.Lines(r.text(name)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != group+":" {
			continue
		}
		if header == nil {
			header = fields
			continue
		}
		if i := slices.Index(header, counter); i > 0 && i < len(fields) {
			n, _ := strconv.ParseUint(fields[i], 10, 64)
			return n
		}
	}
	return 0
}

// processes lists those of a name in this network namespace. One whose
// namespace is not to be known is left out.
func (r machineReader) processes(name string) []int {
	own, err := fs.ReadLink(r.root, "proc/thread-self/ns/net")
	if err != nil {
		return nil
	}
	entries, err := fs.ReadDir(r.root, "proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || r.line("proc/"+entry.Name()+"/comm") != name {
			continue
		}
		if at, err := fs.ReadLink(r.root, "proc/"+entry.Name()+"/ns/net"); err == nil && at == own {
			pids = append(pids, pid)
		}
	}
	return pids
}

// deviceOf finds in a mount table (proc(5), mountinfo) the file system that
// holds dir: "major:minor", empty if the table cannot be read.
func (r machineReader) deviceOf(table, dir string) string {
	device, longest := "", -1
	for line := range strings.Lines(r.text(table)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		at := fields[4]
		covers := at == "/" || dir == at || strings.HasPrefix(dir, at+"/")
		if covers && len(at) >= longest { // of two mounts at one place the later one is seen
			device, longest = fields[2], len(at)
		}
	}
	return device
}

func linkCounters(links []netlink.Link) map[int]policy.LinkCounters {
	counters := make(map[int]policy.LinkCounters, len(links))
	for _, link := range links {
		if s := link.Attrs().Statistics; s != nil {
			counters[link.Attrs().Index] = policy.LinkCounters{In: s.RxPackets, Out: s.TxPackets, InMulticast: s.Multicast}
		}
	}
	return counters
}

// attachedTo says of each interface of the dataplane pinned below dir whether
// both programs are there. It only looks: no stale link is removed.
func attachedTo(dir string) (loaded bool, attached map[int]bool, err error) {
	d, err := Open(dir)
	if errors.Is(err, ErrNotLoaded) {
		return false, nil, nil
	}
	if err != nil {
		return false, nil, err
	}
	defer func() { _ = d.Close() }()
	interfaces, err := readMap[uint32, ifaceValue](d.maps.Ifaces)
	if err != nil {
		return true, nil, err
	}
	attached = make(map[int]bool, len(interfaces))
	for ifindex := range interfaces {
		attached[int(ifindex)] = d.seesAttached(int(ifindex))
	}
	return true, attached, nil
}

func (d *Dataplane) seesAttached(ifindex int) bool {
	for _, h := range hooks {
		if l, err := link.LoadPinnedLink(d.linkPath(ifindex, h), nil); err == nil {
			info, err := l.Info()
			_ = l.Close()
			if err == nil && info.TCX() != nil && info.TCX().Ifindex == uint32(ifindex) {
				continue
			}
		}
		if filter, err := findFilter(ifindex, h); err != nil || filter == nil {
			return false
		}
	}
	return true
}
