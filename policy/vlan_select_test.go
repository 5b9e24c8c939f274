// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseSelectors(t *testing.T) {
	plain := func(text string, id uint16) Selector { return Selector{Text: text, VLAN: VLAN{Outer: id}} }
	span := func(text string, low, high uint16) Selector {
		return Selector{Text: text, VLAN: VLAN{Outer: low}, Last: high}
	}
	tests := []struct {
		name string
		args []string
		want []Selector
	}{
		{"the contract's", []string{"2,20,101,201,239-240,250"}, []Selector{
			plain("2", 2), plain("20", 20), plain("101", 101), plain("201", 201), span("239-240", 239, 240), plain("250", 250),
		}},
		{"arguments", []string{"2", "20"}, []Selector{plain("2", 2), plain("20", 20)}},
		{"commas and spaces", []string{"2,", "20 ,101", " 250 "}, []Selector{plain("2", 2), plain("20", 20), plain("101", 101), plain("250", 250)}},
		{"untagged", []string{"0"}, []Selector{plain("0", 0)}},
		{"QinQ", []string{"100.20"}, []Selector{{Text: "100.20", VLAN: VLAN{100, 20}}}},
		{"named", []string{"2/voip,100.20/a.b-c_9"}, []Selector{
			{Text: "2/voip", VLAN: VLAN{Outer: 2}, Name: "voip"}, {Text: "100.20/a.b-c_9", VLAN: VLAN{100, 20}, Name: "a.b-c_9"},
		}},
		{"interfaces", []string{"eth0.2,br-lan", "wan"}, []Selector{
			{Text: "eth0.2", Interface: "eth0.2"}, {Text: "br-lan", Interface: "br-lan"}, {Text: "wan", Interface: "wan"},
		}},
		{"range of one", []string{"7-7"}, []Selector{span("7-7", 7, 7)}},
		{"all", []string{"1-4094"}, []Selector{span("1-4094", 1, 4094)}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := ParseSelectors(test.args...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseSelectorsFaults(t *testing.T) {
	for _, test := range []struct{ list, want string }{ // want: part of the error, naming the entry
		{"", "it is empty"}, {"  ", "it is empty"},
		{",", "nothing stands between"}, {"2,,3", "nothing stands between"}, {"2,3,", "nothing stands between"}, {",2", "nothing stands between"},
		{"2,02", `"02" begins with a zero`}, {"4095", "4095 is out of range"}, {"2,99999999999999999999", "99999999999999999999 is out of range"},
		{"240-239", `entry "240-239": the range runs backwards: write 239-240`},
		{"0-4", `entry "0-4": the range begins wrongly`}, {"4090-4095", `entry "4090-4095": the range ends wrongly`},
		{"5-", `entry "5-": the range ends wrongly`}, {"-5", `entry "-5": the range begins wrongly`}, {"1-2-3", `entry "1-2-3"`},
		{"100.20-100.25", `entry "100.20-100.25": the range begins wrongly`},
		{"2/", `entry "2/"`}, {"/voip", `entry "/voip"`}, {"x/voip", `entry "x/voip"`}, {"2/a/b", `entry "2/a/b"`}, {"2/" + strings.Repeat("n", 32), "shorten it to 31"},
		{"eth0:2", `entry "eth0:2": interface name "eth0:2" contains ':'`}, {"averylonginterface", "Linux allows 15"}, {"eth0\x00", "contains '\\x00'"},
		{"1.2.3", `entry "1.2.3"`}, {"..", `entry ".."`}, {"\xff", "contains"},
	} {
		got, err := ParseSelectors(test.list)
		if err == nil || !strings.Contains(err.Error(), test.want) || got != nil {
			t.Errorf("ParseSelectors(%q) = %v, %v; want an error with %q", test.list, got, err, test.want)
		}
	}
	if _, err := ParseSelectors(); err == nil {
		t.Error("no arguments: want an error")
	}
}

func TestSelect(t *testing.T) {
	pins := []PinState{
		{VLAN: VLAN{}, Interface: "eth1"},
		{VLAN: VLAN{Outer: 2}, Name: "voip", Interface: "eth0.2"},
		{VLAN: VLAN{Outer: 2}, Name: "rest", Interface: "eth0.2"},
		{VLAN: VLAN{Outer: 20}, Interface: "eth0.20"},
		{VLAN: VLAN{Outer: 240}, Interface: ""},
		{VLAN: VLAN{100, 20}, Interface: "eth0.100.20"},
	}
	tests := []struct {
		list, matched string
		unknown       []string
	}{
		{"20", "20", nil},
		{"2", "2/voip 2/rest", nil},
		{"20,2", "2/voip 2/rest 20", nil},
		{"2/rest", "2/rest", nil},
		{"2/rest,2,eth0.2", "2/voip 2/rest", nil},
		{"eth0.2", "2/voip 2/rest", nil},
		{"0", "0", nil},
		{"100.20,eth1", "0 100.20", nil},
		{"100", "", []string{"100"}},
		{"100.2", "", []string{"100.2"}},
		{"20/rest", "", []string{"20/rest"}},
		{"2,3,3,eth9,2/x", "2/voip 2/rest", []string{"3", "eth9", "2/x"}},
		{"239-240", "240", []string{"239"}},
		{"240-242", "240", []string{"241", "242"}},
		{"19-21,240", "20 240", []string{"19", "21"}},
		{"1-30", "2/voip 2/rest 20", []string{"1", "3-19", "21-30"}},
		{"3-5,4", "", []string{"3-5", "4"}},
		{"1-4094", "2/voip 2/rest 20 240", []string{"1", "3-19", "21-239", "241-4094"}},
	}
	for _, test := range tests {
		selectors, err := ParseSelectors(test.list)
		if err != nil {
			t.Fatal(err)
		}
		matched, unknown := Select(selectors, pins)
		var keys []string
		for _, pin := range matched {
			keys = append(keys, pin.Key().String())
		}
		if got := strings.Join(keys, " "); got != test.matched || !slices.Equal(unknown, test.unknown) {
			t.Errorf("%s selects %q, unknown %q; want %q, %q", test.list, got, unknown, test.matched, test.unknown)
		}
	}
}

func TestSelectPassesOverRetiredPins(t *testing.T) {
	pins := []PlanPin{{ID: 1, VLAN: VLAN{Outer: 2}, Interface: "eth0.2", Retired: true}, {ID: 2, VLAN: VLAN{Outer: 3}, Interface: "eth0.3"}}
	selectors, err := ParseSelectors("2,eth0.2,3")
	if err != nil {
		t.Fatal(err)
	}
	matched, unknown := Select(selectors, pins)
	if len(matched) != 1 || matched[0].ID != 2 || !slices.Equal(unknown, []string{"2", "eth0.2"}) {
		t.Errorf("matched %+v, unknown %q; want pin 2 and 2, eth0.2", matched, unknown)
	}
}
