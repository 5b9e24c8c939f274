// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"vippin/policy"
)

func TestHowRoutersReachEachOther(t *testing.T) {
	const unicast = "set high-availability vrrp group A interface eth5\nset high-availability vrrp group A peer-address 198.51.100.4\n" +
		"set high-availability vrrp group A hello-source-address 198.51.100.3\n"
	cases := []struct {
		name, text  string
		o           Options
		listen      string
		peers       string
		todo, extra string // a part of what is left to do; of the comments
	}{
		{"UDP", "Sync {\n UDP {\n IPv4_address 198.51.100.1\n IPv4_Destination_Address 198.51.100.2\n Port 3780\n Interface eth5\n }\n}\n", Options{},
			"198.51.100.1:7443", "peer=198.51.100.2:7443", "", "conntrackd's port is not taken over"},
		{"TCP, IPv6", "Sync { TCP { IPv6_address 2001:db8::1 IPv6_Destination_Address 2001:db8::2 Interface eth5 } }\n", Options{},
			"[2001:db8::1]:7443", "peer=[2001:db8::2]:7443", "", ""},
		{"link-local", "Sync { TCP { IPv6_address fe80::1 IPv6_Destination_Address fe80::2 Interface eth5 } }\n", Options{},
			"[fe80::1%eth5]:7443", "peer=[fe80::2%eth5]:7443", "", ""},
		{"multicast", "Sync { Multicast { IPv4_address 225.0.0.50 Group 3780 IPv4_interface 198.51.100.1 Interface eth5 } }\n", Options{},
			"198.51.100.1:7443", "", "the other router's address on eth5 is not in the files", "vippin sends to no group"},
		{"the default link", "Sync {\n UDP {\n IPv4_address 198.51.100.1\n IPv4_Destination_Address 198.51.100.2\n Interface eth5\n }\n UDP Default {\n IPv4_address 203.0.113.1\n" +
			" IPv4_Destination_Address 203.0.113.2\n Interface eth6\n }\n}\n", Options{},
			"203.0.113.1:7443", "peer=203.0.113.2:7443", "", "UDP eth5 198.51.100.1 198.51.100.2 (2): vippin has one session"},
		{"the command line wins", "Sync { UDP { IPv4_address 198.51.100.1 IPv4_Destination_Address 198.51.100.2 } }\n",
			Options{Listen: netip.MustParseAddrPort("203.0.113.1:99"), Peers: []Peer{{"router-b", netip.MustParseAddrPort("203.0.113.2:98")}}},
			"203.0.113.1:99", "router-b=203.0.113.2:98", "", ""},
		{"a router that is called peer", "Sync { UDP { IPv4_address 198.51.100.1 IPv4_Destination_Address 198.51.100.2 } }\n", Options{Node: "peer"},
			"198.51.100.1:7443", "other-router=198.51.100.2:7443", "", ""},
		{"no link", "Sync { Mode ALARM { } }\n", Options{}, "", "", "this router's own address is not in the files", ""},
		{"VyOS, multicast", "set service conntrack-sync interface eth5\nset interfaces ethernet eth5 address 198.51.100.1/30\n", Options{},
			"198.51.100.1:7443", "", "the other router's address on eth5", ""},
		{"VyOS, DHCP", "set service conntrack-sync interface eth5\nset interfaces ethernet eth5 address dhcp\n", Options{},
			"", "", "this router's own address on eth5", "interfaces, other than addresses (2)"},
		{"VyOS, peer", "set service conntrack-sync interface eth5.9 peer 198.51.100.2\nset interfaces ethernet eth5 vif 9 address 2001:db8::1/64\nset interfaces ethernet eth5 vif 9 address 198.51.100.1/30\n", Options{},
			"198.51.100.1:7443", "peer=198.51.100.2:7443", "", ""},
		{"VyOS, listen-address", "set service conntrack-sync listen-address 203.0.113.1\nset service conntrack-sync listen-address 198.51.100.1\n" +
			"set service conntrack-sync interface eth5 peer 198.51.100.2\nset interfaces ethernet eth5 address 198.51.100.1/30\n", Options{},
			"198.51.100.1:7443", "peer=198.51.100.2:7443", "", ""},
		{"VRRP's unicast adverts on the link", unicast + "set service conntrack-sync interface eth5\n", Options{},
			"198.51.100.3:7443", "peer=198.51.100.4:7443", "", "the peer is where A sends its adverts"},
		{"VRRP's unicast adverts elsewhere", unicast + "set service conntrack-sync interface eth6\n", Options{},
			"", "", "this router's own address on eth6", ""},
		{"nothing replicates", unicast, Options{}, "", "", "nothing in these files sends connections", ""},
		{"nothing replicates yet", unicast, Options{Listen: netip.MustParseAddrPort("203.0.113.1:7443"), Peers: []Peer{{"b", netip.MustParseAddrPort("203.0.113.2:7443")}}},
			"203.0.113.1:7443", "b=203.0.113.2:7443", "", ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			cfg, r := migrated(t, c.text, c.o)
			listen, peers := "", ""
			if cfg.Sync.Listen.IsValid() {
				listen = cfg.Sync.Listen.String()
			}
			for _, p := range cfg.Sync.Peers {
				peers += fmt.Sprintf("%s=%s", p.Name, p.Address)
			}
			if listen != c.listen || peers != c.peers {
				t.Errorf("listen %q, peers %q; want %q, %q", listen, peers, c.listen, c.peers)
			}
			if todo := strings.Join(r.Todos, "\n"); !strings.Contains(todo, c.todo) || c.todo == "" && strings.Contains(todo, "address") && strings.Contains(todo, "sync") {
				t.Errorf("left to do: %s; want %s", todo, c.todo)
			}
			if !strings.Contains(unwrapped(r), c.extra) {
				t.Errorf("no %q in\n%s", c.extra, r.YAML)
			}
		})
	}
}

// general is a conntrackd.conf with a Sync section and these settings.
func general(text string) string { return "Sync {\n Mode FTFW {\n }\n}\nGeneral {\n" + text + "\n}\n" }

func TestProtocols(t *testing.T) {
	all := policy.SyncProtocols()
	cases := []struct {
		text, says string
		want       []string
		warnings   int
	}{
		{general(""), "", all, 0},
		{general("Filter From Userspace { Protocol Accept { TCP UDP ICMP IPv6-ICMP } }"), "", []string{"tcp", "udp", "icmp", "icmpv6"}, 0},
		{general("Filter { Protocol Accept {\n TCP\n SCTP\n DCCP\n }\n }"), `"other" stands for every other protocol`, []string{"tcp", "other"}, 0},
		{general("Filter { Protocol Ignore { UDP ICMP } }"), "", []string{"tcp", "icmpv6", "other"}, 0},
		{general("Filter { Protocol Ignore { UDP GRE } }"), "cannot leave out", []string{"tcp", "icmp", "icmpv6", "other"}, 0},
		{general("Filter { Protocol Accept { } }"), "", all, 1},
		{general("Filter { Protocol Accept { TCP }\n Protocol Ignore { TCP } }"), "", []string{"tcp"}, 1},
		{"set service conntrack-sync accept-protocol 'tcp,udp,icmp6'\nset service conntrack-sync accept-protocol gre\n", "", []string{"tcp", "udp", "icmpv6", "other"}, 0},
	}
	for _, c := range cases {
		cfg, r := migrated(t, c.text, Options{})
		if !slices.Equal(cfg.Sync.Protocols, c.want) || len(r.Warnings) != c.warnings || !strings.Contains(unwrapped(r), c.says) {
			t.Errorf("%s: %v, warnings %q; want %v", c.text, cfg.Sync.Protocols, r.Warnings, c.want)
		}
	}
}

func TestIgnoredAddresses(t *testing.T) {
	link := "Sync {\n UDP {\n IPv4_address 198.51.100.1\n IPv4_Destination_Address 198.51.100.2\n }\n}\n"
	cases := []struct{ list, want, says string }{
		{"IPv4_address 198.18.1.2", "[198.18.1.2/32]", ""},
		{"IPv4_address 198.18.1.2/24 IPv6_address 2001:db8::1", "[198.18.1.0/24 2001:db8::1/128]", ""},
		{"IPv4_address 198.18.1.2\nIPv4_address 198.18.1.2", "[198.18.1.2/32]", ""},
		{"IPv4_address 198.51.100.1", "[]", "an address of this router"},
		{"IPv4_address 198.51.100.1/30", "[198.51.100.0/30]", ""},
		{"IPv4_address 127.0.0.1\nIPv6_address ::1", "[]", "loopback"},
		{"IPv4_address example.net", "[]", "in:10: IPv4_address example.net: that is neither an address nor a prefix"},
		{"IPv5_address 5", "[]", "in:10: \"IPv5_address\" in a list of addresses"},
	}
	for _, c := range cases {
		cfg, r := migrated(t, link+"General {\nFilter {\nAddress Ignore {\n"+c.list+"\n}\n}\n}\n", Options{})
		if got := fmt.Sprint(cfg.Sync.Ignore); got != c.want || !strings.Contains(unwrapped(r), c.says) {
			t.Errorf("%s: %s, want %s, %q\n%s", c.list, got, c.want, c.says, r.YAML)
		}
	}
}

func TestScopeAndExpectations(t *testing.T) {
	sync := func(options string) string { return "Sync { Mode FTFW { } Options { " + options + " } }\n" }
	cases := []struct {
		text string
		want bool
		says string
	}{
		{sync(""), true, "it was off there"},
		{sync("ExpectationSync on"), true, ""},
		{sync("ExpectationSync Off"), false, ""},
		{sync("ExpectationSync { ftp sip }"), true, "ExpectationSync { ftp sip } (1): sync.expect is for the expectations of every helper"},
		{sync("TCPWindowTracking on ExpectationSync no"), false, "liberal TCP windows"},
		{"set service conntrack-sync expect-sync all\n", true, ""},
		{"set service conntrack-sync expect-sync h323\n", true, "of every helper"},
	}
	for _, c := range cases {
		cfg, r := migrated(t, c.text, Options{})
		if cfg.Sync.Expect != c.want || cfg.Sync.Scope != policy.ScopeAll || !strings.Contains(unwrapped(r), c.says) {
			t.Errorf("%s: expect %t, scope %s; want %t, all, %q\n%s", c.text, cfg.Sync.Expect, cfg.Sync.Scope, c.want, c.says, r.YAML)
		}
	}
}

func TestTableSize(t *testing.T) {
	for text, want := range map[string]uint32{
		"HashLimit 131072": 262144, "HashLimit 600000": 300000, "HashLimit 999999999": policy.MaxFlowsMax, "HashLimit many": 262144,
	} {
		if cfg, _ := migrated(t, general(text), Options{}); cfg.Dataplane.MaxFlows != want {
			t.Errorf("%s: max_flows %d, want %d", text, cfg.Dataplane.MaxFlows, want)
		}
	}
}

// Each setting of the manuals is known: it maps or is explained, and is none of
// those that are not understood.
func TestKnownSettings(t *testing.T) {
	for kind, terms := range map[string]map[string]ctTerm{
		"Sync { Mode FTFW { %s } }":          ctMode,
		"Sync { Mode ALARM { }\nUDP { %s }}": ctUnicast,
		"General { %s }":                     ctGeneral,
		"Sync { Multicast { %s } }":          ctMulticast,
	} {
		for name, term := range terms {
			if term.block || term.either {
				continue
			}
			_, r := migrated(t, fmt.Sprintf(kind, name+" 198.51.100.7"), Options{})
			if len(r.Warnings) > 0 && (term.text != "" && term.read == nil) {
				t.Errorf("%s: %q", name, r.Warnings)
			}
			if term.text == "" && term.read == nil {
				t.Errorf("%s neither maps nor is explained", name)
			}
		}
	}
	for _, terms := range []map[string]kaTerm{kaTop, kaInstance, kaSyncGroup} {
		for name, term := range terms {
			if term.text == "" && term.read == nil {
				t.Errorf("%s neither maps nor is explained", name)
			}
		}
	}
}

// The options that VyOS's manual lists for conntrack-sync, each with what must be
// said of it.
func TestEachOptionOfConntrackSync(t *testing.T) {
	for option, says := range map[string]string{
		"event-listen-queue-size 8":                  "event-listen-queue-size 8 (2): nothing to size: vippin's socket has 16 MiB",
		"sync-queue-size 8":                          "sync-queue-size 8 (2): nothing to size: the session is TCP",
		"mcast-group 225.0.0.50":                     "mcast-group 225.0.0.50 (2): vippin sends to no group",
		"failover-mechanism vrrp sync-group nowhere": `conntrack-sync follows the sync-group "nowhere", which is not there`,
		"purge-timeout 60":                           "purge-timeout 60 (2): nothing is purged after a handover",
		"startup-resync":                             "startup-resync (2): always",
		"disable-external-cache":                     "disable-external-cache (2): there is no cache",
		"disable-syslog":                             "disable-syslog (2): vippin logs to stderr",
		"interface eth1 port 3780":                   "interface eth1 port 3780 (2): conntrackd's port is not taken over",
		"accept-protocol tcp":                        "protocols: [tcp]",
		"ignore-address ipv4 198.18.1.1":             "ignore: [198.18.1.1/32]",
		"ignore-address 198.18.1.0/24":               "ignore: [198.18.1.0/24]",
		"expect-sync ftp":                            "expect: true",
		"listen-address 198.51.100.1":                "listen: 198.51.100.1:7443",
		"interface eth1 peer 198.51.100.2":           "UDP eth1",
		"made-up 5":                                  `in:2: unknown setting "service conntrack-sync made-up 5"`,
	} {
		_, r := migrated(t, "set service conntrack-sync interface eth1\nset service conntrack-sync "+option+"\n", Options{Listen: netip.AddrPort{}})
		if !strings.Contains(unwrapped(r), says) && option != "interface eth1 peer 198.51.100.2" {
			t.Errorf("%s: no %q in\n%s", option, says, r.YAML)
		}
	}
}

// docs/migrate.md names every setting of conntrackd's and every option of
// conntrack-sync.
func TestDocumentNamesEverySetting(t *testing.T) {
	data, err := os.ReadFile("../../docs/migrate.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := strings.ToLower(string(data))
	count := 0
	var visit func(terms map[string]ctTerm)
	visit = func(terms map[string]ctTerm) {
		for name, term := range terms {
			count++
			if !strings.Contains(doc, "`"+name+"`") && name != "sync" && name != "general" && name != "options" {
				t.Errorf("docs/migrate.md does not name %s", name)
			}
			visit(term.in)
		}
	}
	visit(ctTop)
	for _, term := range vySync {
		count++
		if name, _, _ := strings.Cut(term.path, " *"); !strings.Contains(doc, "`"+name+"`") && !strings.HasPrefix(name, "ignore-address") && !strings.HasPrefix(name, "expect-sync") {
			t.Errorf("docs/migrate.md does not name %s", name)
		}
	}
	if count < 60 {
		t.Errorf("only %d settings were looked for", count)
	}
}
