// SPDX-License-Identifier: Apache-2.0

//go:build vmsmoke

package smoke

import (
	"encoding/json"
	"os"
	"os/exec"
	"testing"
)

// TestBench: tagged frames go through every kind of router, two tags at once, and
// by the fast path where it is to be measured. The rates of an emulator say nothing.
func TestBench(t *testing.T) {
	cmd := exec.Command(os.Getenv("VIPPIN_BIN"), "bench", "-j", "--vlan", "100.20", "--directions", "out,back",
		"--cases", "xdp-fib,masquerade,vippin-fast", "--flows", "10", "--rounds", "1", "--seconds", "0.01")
	cmd.Stderr = os.Stderr
	said, err := cmd.Output()
	if err != nil {
		t.Fatalf("bench: %v", err)
	}
	var rows []struct {
		Case      string   `json:"case"`
		VLAN      string   `json:"vlan"`
		Mpps      float64  `json:"mpps"`
		FastShare *float64 `json:"fast_share"`
	}
	if err := json.Unmarshal(said, &rows); err != nil || len(rows) != 6 {
		t.Fatalf("%d rows, want 6 (%v): %s", len(rows), err, said)
	}
	for _, r := range rows {
		if r.VLAN != "100.20" || r.Mpps <= 0 {
			t.Errorf("row %+v", r)
		}
		if r.Case == "vippin-fast" && (r.FastShare == nil || *r.FastShare < 0.9) {
			t.Errorf("share of the fast path %v", r.FastShare)
		}
	}
}
