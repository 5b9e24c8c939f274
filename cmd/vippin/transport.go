// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/ed25519"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"vippin/policy"
)

// transport connects this router with its peers, one authenticated and
// encrypted connection each: TLS 1.3, both sides known by their public keys
// alone. Whatever comes from anybody else ends in the handshake.
type transport struct {
	key   ed25519.PrivateKey
	trust trustStore
	serve serveFunc
	log   *slog.Logger
}

// serveFunc has the connection to a peer until it returns. ctx ends when the
// transport ends, the peer has left the configuration or has lost its trust, or
// a newer connection of the peer has come; the connection is closed then, so
// that reads and writes end too. What it returns is shown as the peer's last
// error.
type serveFunc func(ctx context.Context, peer string, conn net.Conn) error

func newTransport(key ed25519.PrivateKey, trust trustStore, serve serveFunc, log *slog.Logger) *transport {
	return &transport{key: key, trust: trust, serve: serve, log: log}
}

// Run listens and dials until ctx ends, and waits for every serve.
func (t *transport) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Set changes listen address and peers, before or while Run runs. The living
// connection of a peer stays unless its address or key has changed.
func (t *transport) Set(config policy.SyncConfig) {}

// Peer says how it stands with a peer of the configuration.
func (t *transport) Peer(name string) (linkStatus, bool) { return linkStatus{}, false }

// Refused counts connections to sync.listen that were refused, by reason.
func (t *transport) Refused() map[string]uint64 { return nil }

// Warnings is what an owner should look at.
func (t *transport) Warnings() []string { return nil }

// linkStatus is a peer as the transport sees it.
type linkStatus struct {
	Key       string // the public key it must have; "" = none is known
	Connected bool   // else connecting, or without a key down
	Since     time.Time
	Remote    netip.AddrPort // while connected
	Sessions  uint64         // since the start

	BytesSent, BytesReceived uint64            // since the start, as the wire sees them
	Refused                  map[string]uint64 // connections from its address, by reason
	ShownKey                 string            // the last key that was refused there
	LastError                string
	LastErrorAt              time.Time
}
