// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"

	"vippin/policy"
)

// Costs is not built yet.
func Costs(ctx context.Context, iface string) ([]policy.ProgramCost, error) {
	return nil, errors.New("not built yet")
}
