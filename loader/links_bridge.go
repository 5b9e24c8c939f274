// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"os"
	"strings"

	"vippin/policy"
)

// OnPort reads what netfilter sees on the ports of bridges, in the network namespace
// of the calling thread. Without br_netfilter it sees nothing.
func OnPort() policy.OnPort {
	set := func(name string) bool {
		text, err := os.ReadFile("/proc/sys/net/bridge/bridge-nf-" + name)
		return err == nil && strings.TrimSpace(string(text)) != "0"
	}
	return policy.OnPort{IPv4: set("call-iptables"), IPv6: set("call-ip6tables"), Tagged: set("filter-vlan-tagged")}
}
