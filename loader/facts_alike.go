// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vippin/policy"
)

// timeDaemons set the clock; a name as the kernel keeps it has 15 octets.
var timeDaemons = []string{"chronyd", "ntpd", "systemd-timesyn", "openntpd", "ptp4l", "phc2sys", "vmtoolsd"}

// Likeness reads what this router's peers should have alike, in the network
// namespace of the calling thread, which must not change meanwhile. It changes
// nothing, and what it cannot read is named in the result.
func Likeness(interfaces []string) policy.Likeness {
	r := machineReader{root: osRoot()}
	l := policy.Likeness{
		Kernel: r.line("proc/sys/kernel/osrelease"), Sysctls: r.alike(interfaces),
		Clock: policy.Clock{Time: time.Now(), Sources: r.running(timeDaemons), Synced: clockSynced()},
	}
	l.NAT.Legacy = r.legacyNAT()
	var err error
	if l.MTU, err = linkMTUs(); err != nil {
		l.Unread = append(l.Unread, err.Error())
	}
	for range 3 { // rules may be replaced while they are read
		if l.NAT.Chains, err = readNATChains(); err == nil {
			break
		}
	}
	if err != nil {
		l.Unread = append(l.Unread, fmt.Sprintf("NAT rules: %v", err))
	}
	l.NAT.Known = err == nil
	return l
}

// alike reads the settings that flows which another router takes over go by.
func (r machineReader) alike(interfaces []string) map[string]string {
	const conntrack = "net/netfilter/"
	names := []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/all/rp_filter"}
	for _, ifname := range interfaces {
		names = append(names, "net/ipv4/conf/"+ifname+"/forwarding", "net/ipv4/conf/"+ifname+"/rp_filter",
			"net/ipv6/conf/"+ifname+"/disable_ipv6")
	}
	if entries, err := fs.ReadDir(r.root, "proc/sys/net/netfilter"); err == nil {
		for _, entry := range entries {
			if name := entry.Name(); strings.HasPrefix(name, "nf_conntrack_") && !notAlike[name] {
				names = append(names, conntrack+name)
			}
		}
	}
	return r.values(names)
}

// notAlike is readings, and settings that do not bear on flows or that the daemon
// sees to.
var notAlike = map[string]bool{
	"nf_conntrack_count": true, "nf_conntrack_buckets": true, "nf_conntrack_events": true, "nf_conntrack_log_invalid": true,
	"nf_conntrack_expect_max": true, "nf_conntrack_frag6_high_thresh": true, "nf_conntrack_frag6_low_thresh": true, "nf_conntrack_frag6_timeout": true,
}

// running lists which of some programs run, wherever.
func (r machineReader) running(programs []string) []string {
	entries, err := fs.ReadDir(r.root, "proc")
	if err != nil {
		return nil
	}
	var found []string
	for _, entry := range entries {
		if name := entry.Name(); name[0] < '0' || name[0] > '9' {
			continue
		}
		if comm := r.line("proc/" + entry.Name() + "/comm"); slices.Contains(programs, comm) && !slices.Contains(found, comm) {
			found = append(found, comm)
		}
	}
	slices.Sort(found)
	return found
}

// clockSynced asks the kernel (adjtimex(2)).
func clockSynced() bool {
	var state unix.Timex
	_, err := unix.Adjtimex(&state)
	return err == nil && state.Status&unix.STA_UNSYNC == 0
}

func linkMTUs() (map[int]int, error) {
	links, err := undisturbed(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	sizes := make(map[int]int, len(links))
	for _, link := range links {
		sizes[link.Attrs().Index] = link.Attrs().MTU
	}
	return sizes, nil
}
