// SPDX-License-Identifier: Apache-2.0

// Package doctor judges what breaks address pinning in practice: facts about
// this router in, findings with their remedies out. It does no I/O. Each check
// is one small function in the table of Examine; it says only what is certain,
// so that a healthy router gives no warning.
package doctor

import (
	"fmt"
	"slices"
	"strings"

	"vippin/policy"
)

// State is how bad a finding is.
type State string

// OK is what was looked at and is well. Warning: it works now, but will not
// always, or is lost already for some flows. Error: something does not work.
const (
	OK      State = "ok"
	Warning State = "warning"
	Error   State = "error"
)

// Finding is one line of "vippin doctor". Its JSON names are a contract.
type Finding struct {
	Check string `json:"check"`
	State State  `json:"state"`
	Found string `json:"found"` // a sentence that names the thing
	// Remedy is what to do: lines to be pasted into a shell (or PowerShell, on
	// Hyper-V), and between them words, which begin with "# ". Empty: nothing.
	Remedy string `json:"remedy"`
}

// Facts is everything a check may look at.
type Facts struct {
	Node         string         // this router's name
	Config       *policy.Config // nil: there is none that can be read
	ConfigErrors []string       // what is wrong with it
	NoConfig     bool           // there is no file
	Plan         policy.Plan    // what the pins mean on the present interfaces
	Observed     policy.Observed
	Machine      policy.Machine
	Daemon       *Daemon            // nil: it could not be asked
	DaemonError  string             // why, when one is there
	Pins         []policy.PinStatus // in force: as the daemon says, else the pinned maps; nil: nothing is loaded
	WithoutPin   map[string]uint64  // packets that no pin answers for, by reason
	Tier         string             // how the programs are attached; "" when nothing is
}

// Daemon is what a running daemon answered.
type Daemon struct {
	Status policy.Status
	VRRP   []policy.VRRPStatus
}

// check is one thing that is looked at. It returns nothing where it does not
// apply.
type check struct {
	name string
	look func(*view) []Finding
}

// checks are in the order in which one would look: what is not there at all
// comes first.
var checks = []check{
	{"config", checkConfig},
	{"daemon", checkDaemon},
	{"status", checkStatus},
	{"unread", checkUnread},
	{"tier", checkTier},
	{"bpffs", checkBPFFS},
	{"programs", checkPrograms},
	{"interfaces", checkInterfaces},
	{"vips", checkVIPs},
	{"forwarding", checkForwarding},
	{"rp_filter", checkRPFilter},
	{"arp", checkARP},
	{"masquerade", checkMasquerade},
	{"snat", checkSNAT},
	{"flow_offload", checkOffload},
	{"bridge_netfilter", checkBridgeNetfilter},
	{"fastpath", checkFastpath},
	{"conntrack_max", checkConntrackMax},
	{"max_flows", checkMaxFlows},
	{"conntrack_events", checkEvents},
	{"conntrackd", checkConntrackd},
	{"adverts", checkAdverts},
	{"adverts_ignored", checkIgnored},
	{"masters", checkMasters},
	{"roles", checkRoles},
	{"one_way", checkOneWay},
	{"virtual_mac", checkVirtualMAC},
	{"returns", checkReturns},
	{"foreign", checkForeign},
	{"unpinned", checkUnpinned},
	{"hypervisor", checkHypervisor},
}

// Examine looks at everything. The findings come in the order of the checks,
// one ok for a check that found nothing wrong.
func Examine(facts Facts) []Finding {
	v := newView(facts)
	findings := []Finding{}
	for _, c := range checks {
		for _, f := range c.look(v) {
			f.Check = c.name
			if !slices.Contains(findings, f) { // pins may share what is wrong
				findings = append(findings, f)
			}
		}
	}
	return findings
}

// Healthy says whether no finding is worse than ok.
func Healthy(findings []Finding) bool {
	for _, f := range findings {
		if f.State != OK {
			return false
		}
	}
	return true
}

func ok(format string, args ...any) Finding {
	return Finding{State: OK, Found: fmt.Sprintf(format, args...)}
}

func warning(remedy, format string, args ...any) Finding {
	return Finding{State: Warning, Found: fmt.Sprintf(format, args...), Remedy: remedy}
}

func fault(remedy, format string, args ...any) Finding {
	return Finding{State: Error, Found: fmt.Sprintf(format, args...), Remedy: remedy}
}

// lines makes a remedy.
func lines(text ...string) string { return strings.Join(text, "\n") }

// unless returns what was found, or that all is well.
func unless(found []Finding, format string, args ...any) []Finding {
	if len(found) > 0 {
		return found
	}
	return []Finding{ok(format, args...)}
}

func only(f Finding) []Finding { return []Finding{f} }
