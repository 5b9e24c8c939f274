// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/base64"
	"fmt"
)

// PublicKey is the Ed25519 public key by which a router knows its peer
// (RFC 8032 section 5.1.5). Written as 44 characters of base64, as WireGuard
// writes its own.
type PublicKey [32]byte

// ParsePublicKey reads what String writes, and nothing else.
func ParsePublicKey(text string) (key PublicKey, err error) {
	raw, err := base64.StdEncoding.Strict().DecodeString(text)
	if err == nil && len(raw) == len(key) {
		key = PublicKey(raw)
	}
	if key.IsZero() || key.String() != text { // the decoder passes over line ends
		return PublicKey{}, fmt.Errorf("%.48q is not a public key: that is the line of 44 characters, ending in \"=\", "+
			"that \"vippin keygen\" prints on the router it belongs to", text)
	}
	return key, nil
}

func (k PublicKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// IsZero tells whether there is no key.
func (k PublicKey) IsZero() bool { return k == PublicKey{} }
