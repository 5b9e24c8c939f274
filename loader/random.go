// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"crypto/rand"
	"encoding/binary"
)

// randomWord is one that nobody can guess.
func randomWord() uint64 {
	var octets [8]byte
	_, _ = rand.Read(octets[:]) // it never fails
	return binary.NativeEndian.Uint64(octets[:])
}
