// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"

	"vippin/policy"
)

// Ready tells of every group whether this router may take it over.
func (d *daemon) Ready(context.Context) ([]policy.ReadyStatus, error) {
	return nil, errors.New("not known yet")
}
