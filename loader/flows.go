// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"vippin/policy"
)

// Flows hands every mapping to yield, until it returns false. Flows come and go
// meanwhile; those that live throughout are seen.
func (d *Dataplane) Flows(yield func(policy.Mapping) bool) error {
	var failed error
	err := scanMap(d.maps.ByLocal, func(key flowKey, local publicEnd) bool {
		var public localEnd
		err := d.maps.ByPublic.Lookup(publicKey(key, &local), &public)
		switch {
		case err == nil:
			return yield(newMapping(&key, &local, &public))
		case errors.Is(err, ebpf.ErrKeyNotExist): // half made or half gone
			return yield(newMapping(&key, &local, nil))
		}
		failed = fmt.Errorf("read map by_public: %w", err)
		return false
	})
	return errors.Join(err, failed)
}
