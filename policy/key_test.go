// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"strings"
	"testing"
)

func TestParsePublicKey(t *testing.T) {
	const good = "Mc0QtSE2UeHH8dqkCLfKEH0RkO4Fn2AYzSbHNp7WTa0="
	key, err := ParsePublicKey(good)
	if err != nil || key.String() != good || key.IsZero() {
		t.Fatalf("%s, %v", key, err)
	}
	for name, text := range map[string]string{
		"nothing":              "",
		"too short":            "abc=",
		"31 octets":            "Mc0QtSE2UeHH8dqkCLfKEH0RkO4Fn2AYzSbHNp7WTQ==",
		"33 octets":            "Mc0QtSE2UeHH8dqkCLfKEH0RkO4Fn2AYzSbHNp7WTa0A",
		"without padding":      strings.TrimSuffix(good, "="),
		"a space before it":    " " + good,
		"a line end behind it": good + "\n",
		"URL base64":           "Mc0QtSE2UeHH8dqkCLfKEH0RkO4Fn2AYzSbHNp7W_a0=",
		"hex":                  strings.Repeat("ab", 32),
		"loose last bits":      "Mc0QtSE2UeHH8dqkCLfKEH0RkO4Fn2AYzSbHNp7WTa1=",
		"all zero":             PublicKey{}.String(),
	} {
		if key, err := ParsePublicKey(text); err == nil || !strings.Contains(err.Error(), "vippin keygen") || !key.IsZero() {
			t.Errorf("%s: %s, %v", name, key, err)
		}
	}
}
