// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"maps"
	"strings"
	"testing"
)

func TestTogglesRoundTrip(t *testing.T) {
	toggles := Toggles{{VLAN: VLAN{Outer: 2}}: false, {VLAN: VLAN{Outer: 3}, Name: "voip"}: true, {VLAN: VLAN{100, 20}}: true, {}: false}
	data, err := EncodeToggles(toggles)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{
  "version": 1,
  "toggles": {
    "0": false,
    "100.20": true,
    "2": false,
    "3/voip": true
  }
}
`
	if string(data) != want {
		t.Errorf("written as\n%s\nwant\n%s", data, want)
	}
	again, err := DecodeToggles(data)
	if err != nil || !maps.Equal(again, toggles) {
		t.Errorf("reads as %v, %v; want %v", again, err, toggles)
	}
	none, err := EncodeToggles(nil)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := DecodeToggles(none); err != nil || again == nil || len(again) != 0 {
		t.Errorf("no toggles read as %v, %v", again, err)
	}
}

func TestDecodeTogglesDamaged(t *testing.T) {
	for _, text := range []string{
		"", "\x00\x00\x00", "{", "null", "[]", `{"version":1}`, `{"version":1,"toggles":null}`, `{"version":1,"toggles":{"2":"yes"}}`,
		`{"version":1,"toggles":{"2":null}}`, `{"version":1,"toggles":{"020":true}}`, `{"version":1,"toggles":{"2/":true}}`,
		`{"version":1,"toggles":{},"more":1}`, `{"version":1,"toggles":{}} x`, `{"version":1,"toggles":{"2":tr`,
	} {
		got, err := DecodeToggles([]byte(text))
		if err == nil || got != nil {
			t.Errorf("%q reads as %v, want an error", text, got)
		} else if !strings.Contains(err.Error(), "remove") {
			t.Errorf("%q: the error names no way out: %v", text, err)
		}
	}
	if _, err := DecodeToggles([]byte(`{"version":2,"toggles":[]}`)); err == nil || !strings.Contains(err.Error(), "version 2 was written by another vippin") {
		t.Errorf("a newer file: %v", err)
	}
}

func TestTogglesBeatTheConfiguration(t *testing.T) {
	key, other := PinKey{VLAN: VLAN{Outer: 2}}, PinKey{VLAN: VLAN{Outer: 2}, Name: "b"}
	var none Toggles
	off := none.With(key, false)
	for _, test := range []struct {
		toggles    Toggles
		key        PinKey
		configured bool
		on         bool
		by         EnabledBy
	}{
		{none, key, true, true, EnabledByConfig}, {none, key, false, false, EnabledByConfig},
		{off, key, true, false, EnabledByToggle}, {off, key, false, false, EnabledByToggle},
		{off, other, true, true, EnabledByConfig},
		{off.With(key, true), key, false, true, EnabledByToggle},
		{off.Without(key), key, true, true, EnabledByConfig},
	} {
		if on, by := test.toggles.Decide(test.key, test.configured); on != test.on || by != test.by {
			t.Errorf("%v of %v, configured %t: %t by %s; want %t by %s", test.key, test.toggles, test.configured, on, by, test.on, test.by)
		}
	}
	if len(none) != 0 || len(off) != 1 {
		t.Error("With or Without changed what it was called on")
	}
}

func TestFastpathToggle(t *testing.T) {
	for _, on := range []bool{true, false} {
		data, err := EncodeFastpathToggle(on)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := DecodeFastpathToggle(data); again != on || err != nil {
			t.Errorf("%s reads as %v, %v", data, again, err)
		}
		if got, by := DecideFastpath(&on, !on); got != on || by != EnabledByToggle {
			t.Errorf("%v by %s", got, by)
		}
		if got, by := DecideFastpath(nil, on); got != on || by != EnabledByConfig {
			t.Errorf("%v by %s", got, by)
		}
	}
	for _, text := range []string{"", "null", "{}", `{"version":1}`, `{"version":2,"enabled":true}`, `{"version":1,"enabled":1}`,
		`{"version":1,"enabled":true,"x":1}`, `{"version":1,"enabled":true} {}`} {
		if on, err := DecodeFastpathToggle([]byte(text)); on || err == nil {
			t.Errorf("%q reads as %v", text, on)
		}
	}
}

func TestFastpathInterfaceWarnings(t *testing.T) {
	seen := Observed{Links: []Link{{Index: 2, Name: "eth0", Kind: "device"}, {Index: 3, Name: "eth0.2", Kind: "vlan", Parent: 2},
		{Index: 4, Name: "v.10", Kind: "macvlan", Parent: 3}, {Index: 5, Name: "br0", Kind: "bridge"}, {Index: 6, Name: "lost.7", Kind: "vlan", Parent: 99}}}
	for name, want := range map[string]string{
		"eth0": "", "eth0.2": "is a vlan: name eth0,", "v.10": "is a macvlan: name eth0,", "br0": "is a bridge", "lost.7": "name the device that it is on", "eth9": "no interface eth9",
	} {
		got := strings.Join(FastpathConfig{Interfaces: []string{name}}.InterfaceWarnings(seen), "; ")
		if !strings.Contains(got, want) || (got == "") != (want == "") {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if got := (FastpathConfig{}).InterfaceWarnings(seen); len(got) != 1 {
		t.Errorf("no interfaces: %q", got)
	}
}
