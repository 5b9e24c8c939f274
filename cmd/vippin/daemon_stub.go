// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
)

// runDaemon is replaced by the daemon; then this file goes.
func runDaemon(context.Context, *env, runOptions) error {
	return errors.New("run: this build has no daemon yet")
}
