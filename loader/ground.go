// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
)

// groundFor is for how long a look serves: a flush ends many flows at once.
const groundFor = 50 * time.Millisecond

// ground is what masqueraded flows stand on: the address of their local end, on
// the interface of their slot, which is switched on. When that goes the kernel
// forgets them, in the midst of their lives.
type ground struct {
	d      *Dataplane
	log    *slog.Logger
	handle *netlink.Handle // of the namespace that the flows are in

	mu     sync.Mutex
	looked time.Duration // CLOCK_MONOTONIC, 0: never
	firm   map[slotAddr]bool
	blind  bool // the last look failed, which was told
}

func newGround(d *Dataplane, log *slog.Logger) (*ground, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a socket to look at links: %w", err)
	}
	return &ground{d: d, log: log, handle: handle}, nil
}

func (g *ground) close() { g.handle.Close() }

// lost tells whether a local end has no ground now, or that it is not known.
func (g *ground) lost(key *flowKey) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now := monotonic(); g.looked == 0 || now-g.looked > groundFor {
		firm, err := g.look()
		if err != nil && !g.blind {
			g.log.Warn("cannot look whether flows that ended lost their interface; their mappings stay for some minutes", "error", err)
		}
		g.looked, g.firm, g.blind = now, firm, err != nil
	}
	return !g.firm[slotAddr{Slot: key.Slot, Addr: key.Self}]
}

func (g *ground) look() (map[slotAddr]bool, error) {
	ifaces, err := readMap[uint32, ifaceValue](g.d.maps.Ifaces)
	if err != nil {
		return nil, err
	}
	links, err := undisturbed(g.handle.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	addrs, err := undisturbed(func() ([]netlink.Addr, error) { return g.handle.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	slots := make(map[int]uint32) // by ifindex, of those that are switched on: a lost carrier makes the kernel forget nothing
	for _, link := range links {
		if attrs := link.Attrs(); attrs.RawFlags&unix.IFF_UP != 0 {
			slots[attrs.Index] = ifaces[uint32(attrs.Index)].Slot
		}
	}
	firm := make(map[slotAddr]bool)
	for _, addr := range addrs {
		if a, ok := addrOf(addr); ok && slots[addr.LinkIndex] != 0 {
			firm[newSlotAddr(slots[addr.LinkIndex], a.Prefix.Addr())] = true
		}
	}
	return firm, nil
}

// wasCutOff tells of a flow that conntrack has removed whether it did so before
// the flow's time was over, and no end of a connection had been seen.
func wasCutOff(flow *conntrack.Flow) bool {
	return flow.Timeout > 0 && (flow.TCP == nil || flow.TCP.State <= conntrack.TCPEstablished)
}
