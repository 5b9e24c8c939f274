// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
	"time"
)

// The loss of the table is told of for a while.
func TestLostMarksWarnings(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	if got := (lostMarks{}).warnings(now); got != nil {
		t.Errorf("never lost: %q", got)
	}
	lost := lostMarks{times: 3, last: now.Add(-5 * time.Minute)}
	got := lost.warnings(now)
	if len(got) != 1 || !strings.Contains(got[0], "5m0s ago (3 times so far)") || !strings.Contains(got[0], "flush ruleset") {
		t.Errorf("lost five minutes ago: %q", got)
	}
	if got := lost.warnings(now.Add(6 * time.Minute)); got != nil {
		t.Errorf("lost eleven minutes ago: %q", got)
	}
}

// On a kernel without BTF, check warns of marks that are vippin's there.
func TestCheckWarnsOfMarks(t *testing.T) {
	b := newRig(t)
	b.configure(testConfig + "\nsync: {strict_mark: 0x1000000/0x1000000}\n")
	const want = "sync.strict_mark uses the mask bits 0x1000000"
	if _, stdout, _ := b.run("check"); strings.Contains(stdout, want) {
		t.Errorf("with BTF: %s", stdout)
	}
	b.btf = func() bool { return false }
	if code, stdout, stderr := b.run("check"); code != exitDone || !strings.Contains(stdout, want) {
		t.Errorf("without BTF: exit %d: %s%s", code, stdout, stderr)
	}
}
