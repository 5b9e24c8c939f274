// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"strings"
	"testing"
)

func TestMarkWarnings(t *testing.T) {
	const pins = "\npins: [{vlan: 1, vips: [192.0.2.1]}]\n"
	for text, want := range map[string][]string{
		"":                                       nil,
		"vrrp: {tag: {mark: 0x700000/0xf00000}}": nil,
		"vrrp: {tag: {mark: 0x1000000/0x3000000}}":                     {"vrrp.tag.mark uses the mask bits 0x3000000"},
		"sync: {strict_mark: 0x80000100/0x80000100}":                   {"sync.strict_mark uses the mask bits 0x80000000"},
		"vrrp: {tag: {mark: 0x0/0xf}}\nsync: {strict_mark: 0x10/0x30}": nil,
	} {
		config, err := ParseConfig([]byte(text+pins), "test.yaml", "router")
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		got := config.MarkWarnings()
		if len(got) != len(want) {
			t.Errorf("%s: warnings %q, want %q", text, got, want)
			continue
		}
		for i := range got {
			if !strings.HasPrefix(got[i], want[i]) || !strings.HasSuffix(got[i], "take lower ones") {
				t.Errorf("%s: warning %q, want %q …", text, got[i], want[i])
			}
		}
	}
}
