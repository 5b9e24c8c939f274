// SPDX-License-Identifier: Apache-2.0

package policy

import "net/netip"

// Machine is what this router says of itself besides its links and addresses
// (Observed): what "vippin doctor" judges. What could not be read is missing
// and named in Unread.
type Machine struct {
	Kernel   string // release, "6.1.0-28-amd64"
	BTF      bool   // the kernel describes its own types
	Platform Platform
	// Sysctls are settings and readings by their path below /proc/sys, such as
	// "net/ipv4/ip_forward". What this kernel does not have is not there.
	Sysctls    map[string]string
	RPFDrops   uint64 // packets that a reverse-path filter dropped since boot (IPReversePathFilter)
	NAT        NAT
	Flowtables []Flowtable
	BPFFS      BPFFS
	Loaded     bool                 // a dataplane is pinned below BPFFS.Dir, as far as this process sees
	Attached   map[int]bool         // does an interface of the dataplane carry both programs, by ifindex; nil: not known
	Conntrackd []int                // processes called conntrackd in this network namespace
	Counters   map[int]LinkCounters // by ifindex
	// Where there are macvlans: how many others' MACs are known on an interface, by
	// ifindex (who asked for one of its addresses and was answered, or was asked).
	Neighbours map[int]int
	Ways4      map[int]bool // does any route lead by an interface, by ifindex; nil: not known
	Ways6      map[int]bool
	Unread     []string // what could not be read and why, a sentence each
}

// Platform is how the firmware describes the machine (SMBIOS types 0, 1 and 3).
// All empty: it says nothing.
type Platform struct {
	Vendor, Product string // system manufacturer and product name
	BIOS            string // vendor of the firmware
	Chassis         string // asset tag; public clouds put their mark there
}

// NAT is the source NAT that nf_tables does, which iptables-nft writes too.
type NAT struct {
	Known  bool // the rules could be read
	Rules  []NATRule
	Legacy []string // families ("IPv4", "IPv6") with a nat table of legacy iptables, whose rules are not read
}

// NATRule is a source NAT rule that a postrouting hook leads to, with those
// conditions on the way to it that are understood. A condition that is not
// understood counts as one that may hold.
type NATRule struct {
	Where      string // "table inet nat, chain postrouting, handle 5"
	IPv4, IPv6 bool
	Masquerade bool       // else a fixed translation
	From, To   netip.Addr // of a fixed one: the addresses, inclusive; zero: not known
	Out        []OutMatch // all must match the outgoing interface
}

// OutMatch is a condition on the outgoing interface: it is one of these.
type OutMatch struct {
	Names   []string // "wan0"; "wan*" stands for all that begin so
	Indexes []int
	Not     bool // it is none of these
}

// Flowtable is a flow table of nf_tables, through which established flows
// bypass the stack.
type Flowtable struct {
	Table, Name string
	Devices     []string
	Hardware    bool // flags offload: the NIC forwards
}

// BPFFS is how the directory of pinned maps looks from three sides. A device
// ("0:39") says which file system is there; empty: not known.
type BPFFS struct {
	Dir     string
	Known   bool   // this process may look
	Mounted bool   // a BPF file system, as this process sees it
	Ours    string // as this process sees it
	Host    string // as process 1 sees it
	Daemon  string // as the running daemon sees it
}

// LinkCounters are an interface's packets since it was made.
type LinkCounters struct {
	In, Out     uint64
	InMulticast uint64 // of In: multicast, and on a macvlan broadcast too
}
