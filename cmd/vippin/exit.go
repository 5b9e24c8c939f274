// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
)

// What a verb returns to the shell.
const (
	exitDone     = 0
	exitFailed   = 1
	exitUsage    = 2
	exitDegraded = 3 // status: something needs a look
)

// usageError is a command line that makes no sense, told before anything is
// done.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// silentExit ends with a code when everything has been said on stdout.
type silentExit int

func (e silentExit) Error() string { return fmt.Sprintf("exit %d", int(e)) }

// exitCode turns what execution of the command tree returned into the code.
// An error that no verb returned came from cobra's parsing, so it is usage.
func exitCode(err error, ran bool) int {
	var silent silentExit
	var usage usageError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &silent):
		return int(silent)
	case errors.As(err, &usage), !ran:
		return exitUsage
	}
	return exitFailed
}
