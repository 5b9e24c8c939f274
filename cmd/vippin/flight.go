// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"

	"vippin/policy"
)

// Failovers tells of the role changes that are remembered.
func (d *daemon) Failovers(context.Context) ([]policy.Failover, error) {
	return nil, errors.New("not known yet")
}
