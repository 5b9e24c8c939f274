// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

// FuzzParseConfig: whatever the file, there is either a configuration that can
// be planned or a list of faults that stand in the file.
func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(everything))
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := ParseConfig(data, "f", "host")
		if err != nil {
			checkFaults(t, data, cfg, err)
			return
		}
		links := []Link{
			{Index: 1, Name: "lo"},
			{Index: 2, Name: "eth0", HasL2: true},
			{Index: 3, Name: "eth0.2", Kind: "vlan", Parent: 2, VLAN: VLAN{Outer: 2}, HasL2: true},
		}
		keys := map[PinKey]bool{}
		for i, pin := range cfg.Pins {
			again, err := ParsePinKey(pin.Key().String())
			if err != nil || again != pin.Key() || keys[again] {
				t.Fatalf("pin %d: its key %q reads as %v, %v; already there: %t", i, pin.Key(), again, err, keys[again])
			}
			keys[again] = true
			if !pin.VIP4().IsValid() && !pin.VIP6().IsValid() {
				t.Fatalf("pin %s has no source", pin.Key())
			}
			for _, source := range pin.Sources {
				if source != source.Masked() {
					t.Fatalf("pin %s: source %s has host bits", pin.Key(), source)
				}
			}
		}
		checkPlan(t, cfg, Observed{Links: links}, MakePlan(cfg, nil, Observed{Links: links}, Plan{}))
	})
}

func checkFaults(t *testing.T, data []byte, cfg *Config, err error) {
	t.Helper()
	var faults ConfigErrors
	if cfg != nil || !errors.As(err, &faults) || len(faults) == 0 {
		t.Fatalf("configuration %v, error %v: want no configuration and ConfigErrors", cfg, err)
	}
	lines := bytes.Count(data, []byte("\n")) + bytes.Count(data, []byte("\r")) +
		bytes.Count(data, []byte("\u0085")) + bytes.Count(data, []byte("\u2028")) + bytes.Count(data, []byte("\u2029")) +
		bytes.Count(data, []byte{0}) + 2 // UTF-16: each octet of a line end
	for i, fault := range faults {
		if fault.Line < 1 || fault.Line > lines || fault.Text == "" {
			t.Fatalf("fault %d stands on line %d of %d: %q", i, fault.Line, lines, fault.Text)
		}
		if i > 0 && fault.Line < faults[i-1].Line {
			t.Fatalf("fault %d on line %d comes after line %d", i, fault.Line, faults[i-1].Line)
		}
		if strings.ContainsAny(fault.Text, "\n\x1b\x00") {
			t.Fatalf("fault %d would disturb a terminal: %q", i, fault.Text)
		}
	}
}
