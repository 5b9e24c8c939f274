// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"strings"
	"testing"
)

func TestEditingCommands(t *testing.T) {
	text := `configure
edit high-availability vrrp group OUT
set interface eth0.2
set address 198.51.100.2/24
up
set OUT vrid 7
set high-availability vrrp group OUT excluded-address 203.0.113.2
top
set system host-name 'a "b"'
exit
commit
save
`
	cfg, r := migrated(t, text, Options{})
	wantLists(t, "pins", pinsOf(cfg), []string{"2@eth0.2 [198.51.100.2 203.0.113.2] OUT"})
	wantLists(t, "groups", groupsOf(cfg), []string{"OUT [7@eth0.2]"})
	if len(r.Warnings) > 0 {
		t.Errorf("warnings %q", r.Warnings)
	}
}

// What is about VRRP, conntrack-sync or source NAT and is not known is named line
// by line; what is about other things by what it is about.
func TestUnknownCommands(t *testing.T) {
	text := vyPair + `set high-availability vrrp group OUT teleport yes
set nat source rule 10 outbound-interface colour blue
delete service conntrack-sync
run show vrrp
set hihg-availability vrrp group OUT vrid 8
set high-availability vrrp group OUT vrid 999
set service conntrack-sync interface eth5 peer nobody
set firewall name A rule 1 action drop
set firewall name A rule 2 action drop
set
`
	_, r := migrated(t, text, Options{})
	wantLists(t, "warnings", r.Warnings, []string{
		`in:11: unknown setting "high-availability vrrp group OUT teleport yes": nothing was made of it`,
		`in:12: unknown setting "nat source rule 10 outbound-interface colour blue": nothing was made of it`,
		`in:13: "delete" is no "set" command: nothing was made of it (give what "show configuration commands" prints)`,
		`in:14: "run" is no "set" command: nothing was made of it (give what "show configuration commands" prints)`,
		`in:15: unknown setting "hihg-availability": nothing was made of it`,
		`in:16: vrid "999" is not 1 to 255`,
		`in:17: peer "nobody" is no address: nothing was made of it`,
	})
	if !strings.Contains(string(r.YAML), "firewall: 2 commands (18)") {
		t.Errorf("the firewall is not named:\n%s", r.YAML)
	}
}
