// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"log/slog"
	"net/netip"
	"time"
)

// Bounds of the configuration. Those of names and numbers are the sizes of the
// BPF maps' fields.
const (
	PinNameMax       = 31      // octets
	GroupNameMax     = 63      // octets
	InterfaceNameMax = 15      // octets, Linux's IFNAMSIZ without the final zero
	PinsMax          = 4095    // pins are numbered from 1
	GroupsMax        = 4095    // groups are numbered from 1
	SourcesMax       = 65536   // inside prefixes of all pins together
	VIPsMax          = 16384   // VIPs of all pins together
	MaxFlowsMax      = 1 << 24 // mappings: some 7 GB of kernel memory
)

// Config is the whole configuration file, complete with defaults. ParseConfig
// makes it, and only of a file without a fault.
type Config struct {
	File      string // what the file was called, for messages
	Node      string // this router's name, by default the host name
	RunDir    string // absolute path: control socket
	StateDir  string // absolute path: keys, toggles that outlive a restart
	BPFFS     string // absolute path of the directory of pinned maps and programs
	Log       LogConfig
	Control   ControlConfig
	Dataplane DataplaneConfig
	Groups    []GroupConfig // in the order of the file
	Pins      []PinConfig   // in the order of the file
	VRRP      VRRPConfig
	Sync      SyncConfig
	Fastpath  FastpathConfig
	Metrics   MetricsConfig
}

// LogConfig says how much is logged.
type LogConfig struct {
	Level slog.Level // debug, info, warn, error
}

// ControlConfig says who may change things over the control socket.
type ControlConfig struct {
	Group string // system group that may, besides root; "" = root alone
}

// DataplaneConfig sizes the dataplane.
type DataplaneConfig struct {
	MaxFlows uint32 // mappings, 1 to MaxFlowsMax
}

// GroupConfig is VRRP instances that fail over together.
type GroupConfig struct {
	Name  string
	VRIDs []VRIDConfig
	Line  int // of the file
}

// VRIDConfig is one VRRP instance that speaks for a group.
type VRIDConfig struct {
	VRID      uint8  // 1 to 255
	Interface string // where it is heard; "" = on every interface of the group's pins
}

// PinConfig is one VLAN's rule.
type PinConfig struct {
	VLAN      VLAN
	Name      string       // "" when the VLAN has one pin
	Interface string       // "" = the one that carries the VLAN's tags
	VIPs      []netip.Addr // in the order of the file, without zones
	VRID      uint8        // 0 = none given
	Group     string       // "" = a group of its own
	Enabled   bool
	Sources   []netip.Prefix // inside prefixes without host bits; none = every inside host
	Line      int            // of the file
}

// Key is what the pin is known by.
func (p PinConfig) Key() PinKey { return PinKey{p.VLAN, p.Name} }

// GroupName is the group the pin belongs to: the one it names, or one of its
// own that is called like the pin.
func (p PinConfig) GroupName() string {
	if p.Group != "" {
		return p.Group
	}
	return p.Key().String()
}

// VIP4 is the source for IPv4, the first IPv4 VIP that is not link-local, or
// the zero Addr.
func (p PinConfig) VIP4() netip.Addr { return firstVIP(p.VIPs, netip.Addr.Is4) }

// VIP6 is the source for IPv6, the first IPv6 VIP that is not link-local, or
// the zero Addr.
func (p PinConfig) VIP6() netip.Addr { return firstVIP(p.VIPs, netip.Addr.Is6) }

func firstVIP(vips []netip.Addr, family func(netip.Addr) bool) netip.Addr {
	for _, vip := range vips {
		if family(vip) && !vip.IsLinkLocalUnicast() {
			return vip
		}
	}
	return netip.Addr{}
}

// VRRPConfig says how mastership is found out and adverts are tagged.
type VRRPConfig struct {
	KeepalivedFIFO string // absolute path, "" = none
	Tag            TagConfig
	Lease          time.Duration // how old the daemon's sign of life may be for new mappings
}

// TagConfig is put on VRRP adverts.
type TagConfig struct {
	Mark     MarkConfig
	Priority uint32 // skb->priority; 7 is TC_PRIO_CONTROL, 0 = leave it alone
}

// MarkConfig is some bits of a packet's mark: mark = (mark &^ Mask) | Value.
type MarkConfig struct {
	Value, Mask uint32 // Value has no bit outside Mask; Mask 0 = touch nothing
}

// SyncMode says whether a connection waits for the peer.
type SyncMode string

// In strict mode the first reply of a flow waits for the peer's word.
const (
	SyncAsync  SyncMode = "async"
	SyncStrict SyncMode = "strict"
)

// SyncScope says which conntrack entries the peer gets.
type SyncScope string

// From the fewest to all.
const (
	ScopePinned SyncScope = "pinned"
	ScopeNAT    SyncScope = "nat"
	ScopeAll    SyncScope = "all"
)

// SyncConfig says what is replicated to whom.
type SyncConfig struct {
	Listen         netip.AddrPort // the zero AddrPort = do not listen
	Mode           SyncMode
	Scope          SyncScope
	Protocols      []string       // of tcp, udp, icmp, icmpv6, other
	Ignore         []netip.Prefix // never replicated
	Expect         bool           // expectations of helpers too
	StrictTimeout  time.Duration
	StrictQueue    uint16 // NFQUEUE number
	StrictMark     MarkConfig
	StandbyTimeout time.Duration // of a conntrack entry made for a peer
	DeleteHold     time.Duration
	ReadyTimeout   time.Duration // since boot
	ReadyFile      string        // absolute path
	NoRST          time.Duration
	Peers          []PeerConfig
}

// PeerNames lists the peers in the order of the file.
func (c *SyncConfig) PeerNames() []string {
	names := make([]string, len(c.Peers))
	for i := range c.Peers {
		names[i] = c.Peers[i].Name
	}
	return names
}

// PeerConfig is the other router.
type PeerConfig struct {
	Name    string
	Address netip.AddrPort
	Key     string // public key, "" = the one given to "vippin trust"
	Line    int    // of the file
}

// FastpathConfig says where XDP forwards established flows.
type FastpathConfig struct {
	Enabled    bool
	Interfaces []string
	All        bool // also flows that are not pinned
	Force      bool // also where a shaping queue discipline is passed by
}

// MetricsConfig says where Prometheus finds the metrics.
type MetricsConfig struct {
	Listen netip.AddrPort // the zero AddrPort = nowhere
}

// SyncProtocols are the words that sync.protocols may contain.
func SyncProtocols() []string { return []string{"tcp", "udp", "icmp", "icmpv6", "other"} }

// DefaultConfig is what a file without a word would mean: no pins, the default
// places. ParseConfig starts from it.
func DefaultConfig(file, hostname string) *Config {
	return &Config{
		File:      file,
		Node:      hostname,
		RunDir:    "/run/vippin",
		StateDir:  "/var/lib/vippin",
		BPFFS:     "/sys/fs/bpf/vippin",
		Control:   ControlConfig{Group: "vippin"},
		Dataplane: DataplaneConfig{MaxFlows: 262144},
		VRRP: VRRPConfig{
			Tag:   TagConfig{Mark: MarkConfig{Value: 0x70, Mask: 0xf0}, Priority: 7},
			Lease: 2 * time.Second,
		},
		Sync: SyncConfig{
			Mode:           SyncAsync,
			Scope:          ScopeNAT,
			Protocols:      SyncProtocols(),
			Expect:         true,
			StrictTimeout:  20 * time.Millisecond,
			StrictQueue:    747,
			StrictMark:     MarkConfig{Value: 0x100, Mask: 0x100},
			StandbyTimeout: time.Hour,
			DeleteHold:     3 * time.Second,
			ReadyTimeout:   time.Minute,
			ReadyFile:      "/run/vippin/ready",
			NoRST:          10 * time.Second,
		},
		Metrics: MetricsConfig{Listen: netip.MustParseAddrPort("127.0.0.1:9407")},
	}
}
