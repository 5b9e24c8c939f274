// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"cmp"
	"os"
)

// Masquerade is how the routers hide the LAN behind their WAN address.
type Masquerade string

// The ways to masquerade; each for IPv4 and IPv6, for the LAN's prefixes only.
const (
	MasqueradeNFT      Masquerade = "nft masquerade"        // the default
	MasqueradeRandom   Masquerade = "nft masquerade random" // another port, too
	MasqueradeIPTables Masquerade = "iptables MASQUERADE"   // the nft backend
	MasqueradeSNAT     Masquerade = "nft snat to VIP"       // by hand, no masquerade
	MasqueradeNone     Masquerade = "none"                  // the server gets a route to the LAN by the VIP
)

// Offloads are the NICs' checksum and segmentation offloads.
type Offloads string

// What to do with gro, gso, tso and tx on every interface of the lab.
const (
	OffloadsDefault Offloads = ""    // as the kernel made them: gro off, the others on
	OffloadsOn      Offloads = "on"  // packets of up to 64 KiB pass through the routers
	OffloadsOff     Offloads = "off" // every packet fits the MTU and carries its checksum
)

// Options are a lab's choices; the zero value is two LAN hosts, two routers
// without keepalived running, nft masquerade.
type Options struct {
	Hosts        int        // LAN hosts; 0 = 2
	Masquerade   Masquerade // "" = MasqueradeNFT
	Firewall     bool       // WAN: only established flows come in, no conntrack pick-up in mid-stream
	WAN1         bool       // a second WAN segment
	Transit      bool       // on the WAN a further router, with a host behind it
	Inside       bool       // on the LAN a further router, with a host behind it
	Offloads     Offloads
	Trunk        Trunk  // of the routers; also $VIPPIN_LAB_TRUNK
	TrunkAlone   bool   // of ra only, the others have a cable for each segment
	TrunkNames   bool   // interfaces on it are called eth0.2 …, not after the cables they stand for
	MTU          int    // of every cable from a switch; 0 = 1500
	SingleRouter bool   // only ra, which holds the VIPs without keepalived
	ThirdRouter  bool   // beside ra and rb also rc, of lower priority than both
	VippinBin    string // "" = $VIPPIN_BIN, or else built from this module
	NoBTF        bool   // vippin sees no BTF, as on a kernel without; also $VIPPIN_LAB_NO_BTF = 1
	Fastpath     bool   // vippin forwards by XDP on every segment; also $VIPPIN_LAB_FASTPATH = 1; not with NoBTF
}

func (o Options) withDefaults() Options {
	if o.Hosts == 0 {
		o.Hosts = 2
	}
	o.NoBTF = o.NoBTF || os.Getenv("VIPPIN_LAB_NO_BTF") == "1"
	o.Fastpath = (o.Fastpath || os.Getenv("VIPPIN_LAB_FASTPATH") == "1") && !o.NoBTF
	o.Trunk = cmp.Or(o.Trunk, Trunk(os.Getenv("VIPPIN_LAB_TRUNK")))
	if o.Masquerade == "" {
		o.Masquerade = MasqueradeNFT
	}
	return o
}
