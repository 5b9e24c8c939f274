// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// setSecret gives the digests of bpf/shortcut.h a start that nobody outside
// knows, so that nobody can make two of them alike.
func setSecret(spec *ebpf.CollectionSpec) error {
	if err := spec.Variables["secret"].Set(randomWord()); err != nil {
		return fmt.Errorf("give the programs their secret: %w", err)
	}
	return nil
}

// newEpoch makes the programs forget every shortcut. A packet on its way goes by
// what it read before; the next one of every flow looks at the mappings and pins
// themselves, and leaves its time there. So it is called after a change that
// must hold at once, and before a look at when a mapping was used last.
func (d *Dataplane) newEpoch() error {
	// The time is another number for every process that writes one.
	if err := d.maps.Epoch.Put(uint32(0), uint64(Monotonic())); err != nil {
		return fmt.Errorf("begin a new epoch: %w", err)
	}
	return nil
}
