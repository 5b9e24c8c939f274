// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
)

// TB is the part of testing.TB that ForTest needs.
type TB interface {
	Helper()
	Context() context.Context
	Cleanup(func())
	Failed() bool
	Fatal(...any)
	Errorf(format string, args ...any)
	Logf(format string, args ...any)
	Skipf(format string, args ...any)
}

// ForTest builds a lab that is closed at the end of the test. It skips the
// test when not root, and describes the lab in the log of one that failed.
func ForTest(t TB, name string, opts Options) *Lab {
	t.Helper()
	if err := Root(); err != nil {
		t.Skipf("no lab: %v", err)
	}
	l, err := New(t.Context(), name, opts)
	if errors.Is(err, ErrNoVLANs) {
		t.Skipf("no lab with a trunk: %v", ErrNoVLANs)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("lab %s:\n%s", name, l.Describe())
		}
		if err := l.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
	return l
}
