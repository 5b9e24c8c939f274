// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"vippin/policy"
)

// transport connects this router with its peers, one authenticated and
// encrypted connection each: TLS 1.3, both sides known by their public keys
// alone. Whatever comes from anybody else ends in the handshake.
//
// Of two routers the one with the smaller public key dials. The other one dials
// only when it has been without a connection for a while: its peer may not get
// through in that direction. The newest connection of a peer is the one that
// counts: after a restart the old one may look alive for seconds.
type transport struct {
	key    ed25519.PrivateKey
	public policy.PublicKey
	cert   tls.Certificate
	trust  trustStore
	serve  serveFunc
	log    *slog.Logger
	pace   pace

	changed  chan struct{} // Set was called
	halfOpen halfOpen

	mu       sync.Mutex
	config   policy.SyncConfig
	links    map[string]*link // by peer, the running ones
	listener *listenTask
	counts   map[string]uint64 // refused connections, by reason
	trouble  string            // why sync.listen is not open, "" = it is
	unknown  unknownLog
}

// serveFunc has the connection to a peer until it returns. ctx ends when the
// transport ends, the peer has left the configuration or has lost its trust, or
// a newer connection of the peer has come; the connection is closed then, so
// that reads and writes end too. What it returns is shown as the peer's last
// error.
type serveFunc func(ctx context.Context, peer string, conn net.Conn) error

// pace is how long things may take; tests are in a hurry.
type pace struct {
	connect  time.Duration // from the first packet to the end of the handshake
	passive  time.Duration // without a connection, until the router with the greater key dials
	hold     time.Duration // how far two dials that cross each other may be apart
	retry    time.Duration // after the first failure; doubled up to retryMax
	retryMax time.Duration
	recheck  time.Duration // of the keys, and of a listen address that is not there
}

var usualPace = pace{
	connect: 3 * time.Second, passive: 3 * time.Second, hold: time.Second,
	retry: 200 * time.Millisecond, retryMax: 2 * time.Second, recheck: time.Second,
}

func newTransport(key ed25519.PrivateKey, trust trustStore, serve serveFunc, log *slog.Logger) (*transport, error) {
	cert, err := selfSigned(key)
	if err != nil {
		return nil, err
	}
	return &transport{
		key: key, public: publicOf(key), cert: cert, trust: trust, serve: serve, log: log, pace: usualPace,
		changed: make(chan struct{}, 1), links: make(map[string]*link), counts: make(map[string]uint64),
	}, nil
}

// Set changes listen address and peers, before or while Run runs. The living
// connection of a peer stays unless its address or key has changed.
func (t *transport) Set(config policy.SyncConfig) {
	t.mu.Lock()
	t.config = config
	t.mu.Unlock()
	t.halfOpen.reserve(config.Peers)
	poke(t.changed)
}

// Run listens and dials until ctx ends, and waits for every serve.
func (t *transport) Run(ctx context.Context) error {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		t.follow(ctx, &tasks)
		select {
		case <-ctx.Done():
			return nil
		case <-t.changed:
		}
	}
}

// follow makes what runs what the configuration wants.
func (t *transport) follow(ctx context.Context, tasks *sync.WaitGroup) {
	t.mu.Lock()
	config := t.config
	wanted := make(map[string]policy.PeerConfig, len(config.Peers))
	for _, peer := range config.Peers {
		wanted[peer.Name] = peer
	}
	var ending []task
	for name, l := range t.links {
		peer, stays := wanted[name]
		if !stays || peer.Address != l.peer.Address || peer.Key != l.peer.Key {
			ending = append(ending, l.task)
			delete(t.links, name)
		}
	}
	listen := config.Listen
	if len(config.Peers) == 0 {
		listen = netip.AddrPort{}
	}
	if old := t.listener; old != nil && old.address != listen {
		ending = append(ending, old.task)
		t.listener = nil
	}
	t.mu.Unlock()
	endAll(ending)

	t.mu.Lock()
	defer t.mu.Unlock()
	for name, peer := range wanted {
		if t.links[name] == nil {
			l := newLink(t, peer)
			t.links[name] = l
			l.task = startTask(ctx, tasks, l.run)
		}
	}
	if t.listener == nil && listen.IsValid() {
		run := func(ctx context.Context) { t.listen(ctx, listen) }
		t.listener = &listenTask{task: startTask(ctx, tasks, run), address: listen}
	}
}

type listenTask struct {
	task
	address netip.AddrPort
}

// task is a goroutine that can be ended.
type task struct {
	cancel context.CancelFunc
	done   <-chan struct{}
}

func startTask(ctx context.Context, tasks *sync.WaitGroup, run func(context.Context)) task {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	tasks.Go(func() {
		defer close(done)
		defer cancel()
		run(ctx)
	})
	return task{cancel: cancel, done: done}
}

func endAll(tasks []task) {
	for _, t := range tasks {
		t.cancel()
	}
	for _, t := range tasks {
		<-t.done
	}
}

// keys are the keys that peers of the configuration must have, by name; the
// configuration's word comes before the trust store's. With an error they are
// those of the configuration.
func (t *transport) keys() (map[string]policy.PublicKey, error) {
	t.mu.Lock()
	peers := t.config.Peers
	t.mu.Unlock()
	trusted, err := t.trust.Load()
	return peerKeys(peers, trusted), err
}

func peerKeys(peers []policy.PeerConfig, trusted map[string]policy.PublicKey) map[string]policy.PublicKey {
	keys := make(map[string]policy.PublicKey, len(peers))
	for _, peer := range peers {
		key, given := trusted[peer.Name]
		if peer.Key != "" {
			var wrong error
			if key, wrong = policy.ParsePublicKey(peer.Key); wrong != nil {
				continue // ParseConfig lets none through
			}
			given = true
		}
		if given {
			keys[peer.Name] = key
		}
	}
	return keys
}

// Peer says how it stands with a peer of the configuration.
func (t *transport) Peer(name string) (linkStatus, bool) {
	t.mu.Lock()
	l := t.links[name]
	t.mu.Unlock()
	if l == nil {
		return linkStatus{}, false
	}
	return l.status(), true
}

// Refused counts the connections to sync.listen that were refused, by reason.
func (t *transport) Refused() map[string]uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.counts)
}

// Warnings is what an owner should look at.
func (t *transport) Warnings() []string {
	t.mu.Lock()
	peers, trouble := slices.Clone(t.config.Peers), t.trouble
	t.mu.Unlock()
	var warnings []string
	if trouble != "" {
		warnings = append(warnings, trouble)
	}
	trusted, err := t.trust.Load()
	keys := peerKeys(peers, trusted)
	if err != nil {
		warnings = append(warnings, err.Error())
	}
	for _, peer := range peers {
		key, known := keys[peer.Name]
		switch {
		case !known:
			warnings = append(warnings, fmt.Sprintf("peer %s: its key is not known, nothing is replicated with it: "+
				"run \"vippin keygen\" there and \"vippin trust %s KEY\" here", peer.Name, peer.Name))
		case key == t.public:
			warnings = append(warnings, fmt.Sprintf("peer %s: its key is this router's own: "+
				"each router needs one; was a disk copied? %s", peer.Name, newKeyHint))
		}
	}
	return append(warnings, strangers(trusted, peers)...)
}

const newKeyHint = "Remove node.key from state_dir on one of them and run \"vippin keygen\" there"

// strangers names who is trusted and no peer: often a name that was misspelt.
func strangers(trusted map[string]policy.PublicKey, peers []policy.PeerConfig) []string {
	var warnings []string
	for _, name := range slices.Sorted(maps.Keys(trusted)) {
		if !slices.ContainsFunc(peers, func(peer policy.PeerConfig) bool { return peer.Name == name }) {
			warnings = append(warnings, fmt.Sprintf("%q is trusted, but no peer in sync.peers is called so: "+
				"add it there, or \"vippin trust rm %s\"", name, name))
		}
	}
	return warnings
}
