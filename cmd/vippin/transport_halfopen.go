// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"slices"
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
	share  int                 // kept for each peer's address
	peers  map[netip.Addr]*int // in use of the share
	left   []*int              // of addresses that are no peer's any more
	others int                 // in use by anybody
}

// reserve keeps places for these peers; those in use stay so.
func (h *halfOpen) reserve(peers []policy.PeerConfig) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.peers
	h.peers = make(map[netip.Addr]*int, len(peers))
	for _, peer := range peers {
		addr := plainAddr(peer.Address.Addr())
		if len(h.peers) == halfOpenPeers || h.peers[addr] != nil {
			continue
		}
		h.peers[addr] = before[addr]
		if h.peers[addr] == nil {
			h.peers[addr] = new(int)
		}
		delete(before, addr)
	}
	for _, used := range before {
		h.left = append(h.left, used)
	}
	h.share = halfOpenPerPeer
	if len(h.peers) > 0 {
		h.share = min(h.share, halfOpenPeers/len(h.peers))
	}
}

// enter takes a place, if there is one, until leave.
func (h *halfOpen) enter(from netip.Addr) (leave func(), ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.left = slices.DeleteFunc(h.left, func(used *int) bool { return *used == 0 })
	free := halfOpenMax - h.others
	for _, used := range h.left {
		free -= *used
	}
	kept := 0 // of the free ones, for peers
	for _, used := range h.peers {
		free -= *used
		kept += h.share - min(*used, h.share)
	}
	switch used := h.peers[from]; {
	case free <= 0:
		return nil, false
	case used != nil && *used < h.share:
		return h.take(used), true
	case free <= kept:
		return nil, false
	}
	return h.take(&h.others), true
}

func (h *halfOpen) take(used *int) (leave func()) {
	*used++
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		*used--
	}
}
