// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"vippin/policy"
)

// alpn keeps others that speak TLS out (RFC 7301).
const alpn = "vippin-sync"

// Why a connection was refused.
const (
	refusedKey       = "unknown_key"
	refusedOwnKey    = "own_key"
	refusedVersion   = "version"   // of TLS
	refusedHandshake = "handshake" // garbage, or not done in time
	refusedHalfOpen  = "half_open" // too many others were in their handshake
)

// refusal is an error with one of these reasons.
type refusal struct {
	reason string
	key    policy.PublicKey // that was shown, not proven; zero: none was
	text   string
}

func (r *refusal) Error() string { return r.text }

// selfSigned wraps the key in the certificate that TLS wants. Nobody looks at
// what else is in it: a router's clock may be wrong.
func selfSigned(key ed25519.PrivateKey) (tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "vippin"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280 section 4.1.2.5
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// tlsConfig is for one connection. accept is asked about the key that the other
// side shows, before it has proven to have it: only after the handshake it is
// known whom the connection leads to.
func (t *transport) tlsConfig(accept func(policy.PublicKey) error) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{t.cert},
		MinVersion:   tls.VersionTLS13, MaxVersion: tls.VersionTLS13,
		NextProtos: []string{alpn},
		ClientAuth: tls.RequireAnyClientCert,
		// Names, dates and signers of certificates mean nothing here: the key does.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			return verifyPeer(state, accept)
		},
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true,
	}
}

func verifyPeer(state tls.ConnectionState, accept func(policy.PublicKey) error) error {
	if state.NegotiatedProtocol != alpn {
		return &refusal{reason: refusedHandshake, text: fmt.Sprintf("it does not speak %s", alpn)}
	}
	if len(state.PeerCertificates) == 0 {
		return &refusal{reason: refusedHandshake, text: "it shows no key"}
	}
	key, ok := state.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	if !ok || len(key) != ed25519.PublicKeySize {
		return &refusal{reason: refusedKey, text: "the key it shows is no Ed25519 key"}
	}
	return accept(policy.PublicKey(key))
}

// acceptOnly lets one key through.
func (t *transport) acceptOnly(peer string, want policy.PublicKey) func(policy.PublicKey) error {
	return func(shown policy.PublicKey) error {
		switch {
		case sameKey(shown, t.public):
			return &refusal{reason: refusedOwnKey, key: shown, text: "it has this router's own key: was a disk copied? " + newKeyHint}
		case sameKey(shown, want):
			return nil
		}
		return &refusal{reason: refusedKey, key: shown, text: fmt.Sprintf("it shows the key %s and should have %s: "+
			"if \"vippin keygen\" there prints the first, \"vippin trust %s %s\" (or \"key\" in sync.peers)", shown, want, peer, shown)}
	}
}

// acceptPeers lets the keys of the peers through and notes whose it is.
func (t *transport) acceptPeers(peer *string, owner *policy.PublicKey) func(policy.PublicKey) error {
	return func(shown policy.PublicKey) error {
		if sameKey(shown, t.public) {
			return &refusal{reason: refusedOwnKey, key: shown, text: "it has this router's own key: was a disk copied? " + newKeyHint}
		}
		keys, err := t.keys()
		for _, name := range slices.Sorted(maps.Keys(keys)) {
			if sameKey(shown, keys[name]) {
				*peer, *owner = name, shown
			}
		}
		if *peer != "" {
			return nil
		}
		text := fmt.Sprintf("nobody with the key %s is trusted: if it is a peer's, \"vippin trust NAME %s\"", shown, shown)
		if err != nil {
			text = err.Error()
		}
		return &refusal{reason: refusedKey, key: shown, text: text}
	}
}

func sameKey(a, b policy.PublicKey) bool { return subtle.ConstantTimeCompare(a[:], b[:]) == 1 }

// reasonOf sorts what a handshake returned.
func reasonOf(err error) string {
	var refused *refusal
	if errors.As(err, &refused) {
		return refused.reason
	}
	return refusedHandshake
}

// dialTrouble says why a peer could not be reached, and what helps.
func (t *transport) dialTrouble(peer policy.PeerConfig, err error) error {
	var refused *refusal
	var remote *net.OpError
	switch {
	case errors.As(err, &refused):
		return refused
	case errors.As(err, &remote) && remote.Op == "remote error" && remote.Err.Error() == "tls: bad certificate":
		return fmt.Errorf("it does not trust this router's key: \"vippin trust NAME %s\" there", t.public)
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("nobody listens at %s: does vippin run there, is that its sync.listen, does a firewall refuse?", peer.Address)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return errors.New("the address of sync.listen is not on this router")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, unix.ETIMEDOUT):
		return fmt.Errorf("no answer from %s", peer.Address)
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
		return errors.New("it hung up before the session began")
	}
	return err
}
