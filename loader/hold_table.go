// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"

	"vippin/policy"
)

// HoldRule says which packets wait, and where.
type HoldRule struct {
	Mark  policy.MarkConfig // that tc ingress gives them
	Queue uint16            // NFQUEUE number
}

// InstallHold puts the table inet vippin-hold in force: it gives marked packets
// to the queue, before conntrack sees them, and takes the mark off again. While
// nobody serves the queue they pass.
func InstallHold(rule HoldRule) error { return errors.ErrUnsupported }

// RemoveHold removes the table. None there is no error.
func RemoveHold() error { return errors.ErrUnsupported }

// HoldInstalled tells whether the table is there as InstallHold makes it.
func HoldInstalled(rule HoldRule) (bool, error) { return false, errors.ErrUnsupported }
