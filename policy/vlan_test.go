// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestParseVLAN(t *testing.T) {
	for text, want := range map[string]VLAN{
		"0": {}, "1": {Outer: 1}, "2": {Outer: 2}, "4094": {Outer: 4094}, "100.2": {100, 2}, "100.20": {100, 20}, "4094.4094": {4094, 4094},
	} {
		got, err := ParseVLAN(text)
		if err != nil || got != want {
			t.Errorf("ParseVLAN(%q) = %v, %v; want %v", text, got, err, want)
		}
		if got.String() != text {
			t.Errorf("VLAN %q is written as %q", text, got)
		}
	}
	for _, text := range []string{
		"", "-1", "+2", "02", "00", "4095", "65536", "65538", "18446744073709551618", "2 ", " 2", "2.", ".2", "0.2", "2.0", "2.02",
		"1.2.3", "0x2", "1e2", "1_0", "two", "2/", "２", "2\n",
	} {
		if got, err := ParseVLAN(text); err == nil || got != (VLAN{}) {
			t.Errorf("ParseVLAN(%q) = %v, %v; want an error", text, got, err)
		} else if !strings.Contains(err.Error(), "VLAN") {
			t.Errorf("ParseVLAN(%q): the error does not name the thing: %v", text, err)
		}
	}
}

func TestVLANJSON(t *testing.T) {
	type row struct {
		VLAN VLAN            `json:"vlan"`
		Map  map[VLAN]string `json:"map,omitempty"`
	}
	for _, test := range []struct {
		vlan VLAN
		want string
	}{
		{VLAN{}, `{"vlan":0}`}, {VLAN{Outer: 2}, `{"vlan":2}`}, {VLAN{100, 20}, `{"vlan":"100.20"}`},
	} {
		data, err := json.Marshal(row{VLAN: test.vlan})
		if err != nil || string(data) != test.want {
			t.Errorf("%v is written as %s, %v; want %s", test.vlan, data, err, test.want)
		}
		var again row
		if err := json.Unmarshal(data, &again); err != nil || again.VLAN != test.vlan {
			t.Errorf("%s reads as %v, %v", data, again.VLAN, err)
		}
	}
	data, err := json.Marshal(row{Map: map[VLAN]string{{100, 20}: "x"}})
	if want := `{"vlan":0,"map":{"100.20":"x"}}`; err != nil || string(data) != want {
		t.Errorf("as a map key: %s, %v; want %s", data, err, want)
	}
	var quoted VLAN
	if err := json.Unmarshal([]byte(`"2"`), &quoted); err != nil || quoted != (VLAN{Outer: 2}) {
		t.Errorf(`"2" reads as %v, %v`, quoted, err)
	}
	for _, text := range []string{`100.20`, `2e1`, `-2`, `4095`, `"x"`, `true`, `{}`, `""`, `"\ud800"`} {
		if err := json.Unmarshal([]byte(text), &quoted); err == nil {
			t.Errorf("%s reads as %v, want an error", text, quoted)
		}
	}
}
