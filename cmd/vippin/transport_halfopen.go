// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"sync"

	"vippin/policy"
)

// Of halfOpenMax connections in their handshake at a time, some are kept free
// for each peer's address: whoever else fills his share keeps no peer out.
const (
	halfOpenMax     = 64
	halfOpenPeers   = 48 // of these, for the peers' addresses together
	halfOpenPerPeer = 4  // at most
)

// halfOpen counts the connections that are in their handshake.
type halfOpen struct {
	mu     sync.Mutex
	share  int                // of each peer's address
	peers  map[netip.Addr]int // those in use
	others int
}

// reserve keeps places for these peers; those in use stay so.
func (h *halfOpen) reserve(peers []policy.PeerConfig) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.peers
	h.peers = make(map[netip.Addr]int, len(peers))
	for _, peer := range peers {
		if len(h.peers) == halfOpenPeers {
			break
		}
		addr := peer.Address.Addr().Unmap()
		h.peers[addr] = before[addr]
	}
	h.share = halfOpenPerPeer
	if len(h.peers) > 0 {
		h.share = min(h.share, halfOpenPeers/len(h.peers))
	}
	for addr, used := range before {
		if _, stays := h.peers[addr]; !stays {
			h.others += used
		}
	}
}

// enter takes a place, if there is one, until leave.
func (h *halfOpen) enter(from netip.Addr) (leave func(), ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if used, isPeer := h.peers[from]; isPeer && used < h.share {
		h.peers[from]++
		return func() { h.leave(from) }, true
	}
	if h.others >= halfOpenMax-h.share*len(h.peers) {
		return nil, false
	}
	h.others++
	return func() { h.leave(netip.Addr{}) }, true
}

// leave gives the place back of a peer's address, or of another.
func (h *halfOpen) leave(peer netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, isPeer := h.peers[peer]; isPeer {
		h.peers[peer]--
		return
	}
	h.others--
}
