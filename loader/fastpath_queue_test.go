// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"os/exec"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netns"

	"vippin/loader/nfqueue"
	"vippin/policy"
)

// queueRules are rule sets, and whether packets of established connections that come
// in by lan0 (number 7) and leave by wan0 get to a program.
var queueRules = []struct {
	name, rules string
	want        string // a part of which rule; "": none does
}{
	{"every packet", inForward("queue num 0"), "queue in inet filter forward"},
	{"several queues, nobody needs to listen", inForward("tcp dport 443 queue flags bypass,fanout to 0-3"), "queue in inet filter forward"},
	{"new connections", inForward("ct state new queue num 0"), ""},
	{"established ones of a host", inForward("ct state established ip saddr 198.51.100.1 queue num 0"), "queue"},
	{"what is left of the others", inForward("ct state established,related accept\nqueue num 0"), ""},
	{"behind a rule that is silent", inForward("ct mark 7 accept\nqueue num 0"), "queue in inet filter forward"},
	{"behind a limit", inForward("limit rate 1/second accept\nqueue num 0"), "queue"},
	{"in a chain behind a map of states", `table inet ips { chain inspect { queue num 0; }
		chain forward { type filter hook forward priority 0; ct state vmap { established : jump inspect, new : accept }; } }`, "queue in inet ips inspect"},
	{"in a chain behind a map of states, for all others", `table inet ips { chain inspect { queue num 0; }
		chain forward { type filter hook forward priority 0; ct state vmap { new : accept, * : jump inspect }; } }`, "queue in inet ips inspect"},
	{"in a chain behind a map with timeouts", `table inet ips { chain inspect { queue num 0; }
		map hosts { type ipv4_addr : verdict; timeout 1h; elements = { 198.51.100.1 : jump inspect }; }
		chain forward { type filter hook forward priority 0; ip saddr vmap @hosts; } }`, "queue in inet ips inspect"},
	{"in prerouting, before conntrack", "table ip raw { chain pre { type filter hook prerouting priority raw; queue num 0; } }", "queue in ip raw pre"},
	{"behind NAT", "table ip6 ips { chain post { type filter hook postrouting priority 200; queue num 0; } }", "queue in ip6 ips post"},
	{"the router's own packets", `table inet ips { chain input { type filter hook input priority 0; queue num 0; }
		chain output { type filter hook output priority 0; queue num 0; } }`, ""},
	{"packets in a bridge", "table bridge ips { chain forward { type filter hook forward priority 0; queue num 0; } }", ""},
	{"a table of ours", "table inet vippin-hold { chain hold { type filter hook prerouting priority -310; queue num 0; } }", ""},
	{"from another interface", inForward(`iifname "dmz0" queue num 0`), ""},
	{"from lan0", inForward(`iifname "lan0" queue num 0`), "queue"},
	{"from lan0 by its number", inForward("iif 7 queue num 0"), "queue"},
	{"from another number", inForward("iif 8 queue num 0"), ""},
	{"from some interfaces", inForward(`iifname "lan*" queue num 0`), "queue"},
	{"from some others", inForward(`iifname "lan01*" queue num 0`), ""},
	{"from a longer name", inForward(`iifname "lan01" queue num 0`), ""},
	{"from all but one", inForward(`iifname != "lan0" queue num 0`), "queue"},
	{"to one of a set", inForward(`oifname { "dmz0", "wan0" } queue num 0`), "queue"},
	{"to one of a set of others", inForward(`oifname { "dmz0", "dmz1" } queue num 0`), ""},
	{"to none of a set", inForward(`oifname != { "dmz0", "dmz1" } queue num 0`), "queue"},
	{"on one of some ways", inForward(`iifname . oifname { "lan0" . "wan0", "dmz0" . "wan0" } queue num 0`), "queue"},
	{"behind a map of zones", `table inet ips { chain inspect { queue num 0; }
		chain forward { type filter hook forward priority 0; iifname vmap { "dmz0" : jump inspect, "lan0" : accept }; } }`, ""},
	{"behind a map of zones, ours", `table inet ips { chain inspect { queue num 0; }
		chain forward { type filter hook forward priority 0; iifname vmap { "dmz0" : accept, "lan0" : jump inspect }; } }`, "queue in inet ips inspect"},
}

// queueWords are a queue in nft's words.
var queueWords = regexp.MustCompile(`queue (flags \S+ to|num) [0-9-]+`)

// queueRuleset puts rules in force. On a kernel that lacks nft_queue they log instead,
// and readQueueRules takes that for a queue.
func queueRuleset(t *testing.T, lacks bool, rules string) {
	t.Helper()
	if lacks {
		rules = queueWords.ReplaceAllString(rules, "log")
	}
	nft(t, "flush ruleset\n"+strings.ReplaceAll(rules, "} }", "}\n}")) // nft wants it so
}

func readQueueRules(t *testing.T, lacks bool, devices *firewallDevices) string {
	t.Helper()
	rules, err := readFirewall()
	if err != nil {
		t.Fatal(err)
	}
	for _, chain := range rules.order {
		for _, rule := range chain.rules {
			for i := range rule {
				if lacks && rule[i].name == "log" {
					rule[i].name = "queue"
				}
			}
		}
	}
	return rules.look(devices).queues
}

func lacksQueues() bool {
	command := exec.Command("nft", "-f", "-")
	command.Stdin = strings.NewReader(inForward("queue num 0"))
	return command.Run() != nil
}

// TestQueueRules: which rules hand packets to a program that take the fast path.
func TestQueueRules(t *testing.T) {
	enterNamespace(t)
	devices := &firewallDevices{}
	devices.add("lan0", 7)
	devices.add("wan0", 9)
	lacks := lacksQueues()
	for _, c := range queueRules {
		queueRuleset(t, lacks, c.rules)
		wantQueues(t, c.name, readQueueRules(t, lacks, devices), c.want)
	}
	for _, c := range []struct{ line, want string }{
		{"iptables-nft -A FORWARD -j NFQUEUE --queue-num 1 --queue-bypass", "in ip filter FORWARD"},
		{"iptables-nft -A FORWARD -i dmz0 -j NFQUEUE", ""},
		{"iptables-nft -A FORWARD -i lan+ -j NFQUEUE", "in ip filter FORWARD"},
		{"ip6tables-nft -A FORWARD -m conntrack --ctstate NEW -j NFQUEUE", ""},
		{"ip6tables-nft -A FORWARD -m conntrack --ctstate NEW,ESTABLISHED -j NFQUEUE", "in ip6 filter FORWARD"},
		{"iptables-nft -t mangle -A POSTROUTING -m quota --quota 1 -j NFQUEUE", "in ip mangle POSTROUTING"},
		{"iptables-nft -A OUTPUT -j NFQUEUE", ""},
	} {
		nft(t, "flush ruleset")
		command(t, c.line)
		found, err := readFindings(devices)
		if err != nil {
			t.Errorf("%s: %v", c.line, err)
		}
		wantQueues(t, c.line, found.queues, c.want)
	}
}

func wantQueues(t *testing.T, what, got, want string) {
	t.Helper()
	if want == "" && got != "" || !strings.Contains(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// TestQueueLegacy: the same of iptables-legacy, but for rules before the one that queues.
func TestQueueLegacy(t *testing.T) {
	enterNamespace(t)
	devices := &firewallDevices{}
	devices.add("lan0", 7)
	devices.add("wan0", 9)
	for _, c := range []struct{ rule, want string }{
		{"-A FORWARD -s %s -j DROP", ""},
		{"-A INPUT -j NFQUEUE", ""},
		{"-A OUTPUT -j NFQUEUE", ""},
		{"-A FORWARD -j NFQUEUE --queue-num 1 --queue-bypass", "filter"},
		{"-A FORWARD -s %s -p tcp --dport 443 -m comment --comment x -j NFQUEUE", "filter"},
		{"-A FORWARD -m conntrack --ctstate NEW -j NFQUEUE", ""},
		{"-A FORWARD -p udp -m comment --comment x -m conntrack --ctstate NEW,RELATED -j NFQUEUE", ""},
		{"-A FORWARD -m conntrack --ctstate NEW,ESTABLISHED -j NFQUEUE", "filter"},
		{"-A FORWARD -m conntrack ! --ctstate NEW -j NFQUEUE", "filter"},
		{"-A FORWARD -i dmz0 -j NFQUEUE", ""},
		{"-A FORWARD ! -i dmz0 -j NFQUEUE", "filter"},
		{"-A FORWARD -i lan0 -o dmz+ -j NFQUEUE", ""},
		{"-A FORWARD -i lan0 -o wan+ -j NFQUEUE", "filter"},
		{"-t mangle -A POSTROUTING -j NFQUEUE", "mangle"},
		{"-t raw -A PREROUTING -m conntrack --ctstate NEW -j NFQUEUE", "raw"},
		{"-t nat -A POSTROUTING -j NFQUEUE", ""},
		{"-N inspect", ""},
		{"-A inspect -j NFQUEUE", "filter"},
	} {
		for _, family := range []struct{ tool, host string }{{"iptables-legacy", "198.51.100.1"}, {"ip6tables-legacy", "2001:db8::1"}} {
			line := family.tool + " " + strings.ReplaceAll(c.rule, "%s", family.host)
			command(t, line)
			found, err := readFindings(devices)
			if err != nil {
				t.Errorf("%s: %v", line, err)
			}
			if c.want != "" {
				c.want = "NFQUEUE in " + family.tool + " table " + c.want[strings.LastIndex(c.want, " ")+1:]
			}
			wantQueues(t, line, found.queues, c.want)
			for _, table := range []string{"filter", "mangle", "raw", "nat"} {
				command(t, family.tool+" -t "+table+" -F")
			}
		}
	}
}

// TestQueueVerdict: a rule may hand packets on by its verdict alone, which nft has no
// words for.
func TestQueueVerdict(t *testing.T) {
	key := chainKey{family: nftables.TableFamilyINet, table: "ips", name: "forward"}
	chain := &firewallChain{chainKey: key, kind: "filter", hook: int(*nftables.ChainHookForward)}
	r := firewallRule{firewallWalk: &firewallWalk{found: &firewallFindings{}}, at: chain, all: true}
	if fate := r.verdict(firewallVerdict{code: 7<<16 | nfQueue}); fate != isOver || !strings.Contains(r.found.queues, "in inet ips forward") {
		t.Errorf("fate %d, %+v", fate, r.found)
	}
}

// follow runs Run in this namespace until the test ends.
func (l *lab) follow(t *testing.T, f *Fastpath) {
	t.Helper()
	router, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- inNamespace(router, func() error { return f.Run(ctx) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
		_ = router.Close()
	})
}

// inspector lets every packet of queue 7 pass, and counts them until the test ends.
func inspector(t *testing.T) (seen *atomic.Int64) {
	t.Helper()
	queue, err := nfqueue.Open(nfqueue.Config{Queue: 7})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended, seen := make(chan error, 1), new(atomic.Int64)
	go func() {
		ended <- queue.Run(ctx, func(p *nfqueue.Packet) {
			seen.Add(1)
			if err := queue.SetVerdicts(nfqueue.Accept, p.ID); err != nil {
				t.Errorf("let packet %d pass: %v", p.ID, err)
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("read the queue: %v", err)
		}
		_ = queue.Close()
	})
	return seen
}

func mustState(t *testing.T, f *Fastpath) policy.FastpathState {
	t.Helper()
	state, err := f.State()
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// TestFastpathShowsEveryPacket: as long as a rule hands packets of established
// connections to a program that program sees every one of them, from before the fast
// path opens to when the rule has gone.
func TestFastpathShowsEveryPacket(t *testing.T) {
	l := newForwardingLab(t)
	const rule = "iptables-nft -A FORWARD -j NFQUEUE --queue-num 7"
	command(t, rule)
	seen := inspector(t)
	_, f := l.open(t, testBPFFS(t), FastpathOptions{})
	c := l.dial(t, "flow", "udp4", "192.168.1.10:43000")
	wantShown := func(when string) {
		t.Helper()
		before, forwarded := seen.Load(), packetsOf(t, f)["forwarded"]
		const asked = 50
		for range asked {
			mustAsk(t, c)
		}
		if got := seen.Load() - before; got < 2*asked {
			t.Errorf("%s: the program saw %d packets of %d", when, got, 2*asked)
		}
		if now := packetsOf(t, f)["forwarded"]; now != forwarded {
			t.Errorf("%s: %d packets took the fast path", when, now-forwarded)
		}
		if state := mustState(t, f); state.Open || state.Closed != "nft rule with iptables target NFQUEUE in ip filter FORWARD"+policy.FastpathQueues {
			t.Errorf("%s: open %v, closed: %q", when, state.Open, state.Closed)
		}
	}
	wantShown("the rule was there before")
	l.follow(t, f)
	await(t, "the rules are read", func() bool { _, why := f.pace(); return strings.Contains(why, "NFQUEUE in ip filter") })
	wantShown("the rules are followed")
	command(t, "iptables-nft -F FORWARD")
	l.awaitForwarding(t, f, c)
	if state := mustState(t, f); !state.Open || state.Closed != "" {
		t.Errorf("the rule has gone: open %v, closed: %q", state.Open, state.Closed)
	}
	command(t, rule)
	await(t, "the fast path is closed", func() bool { return f.queues() != "" && stateOf(t, f).Generation == 0 })
	wantShown("the rule is back")
	command(t, "iptables-nft -F FORWARD")
	l.awaitForwarding(t, f, c)
	for range 2 {
		legacy := "iptables-legacy -A FORWARD -j NFQUEUE --queue-num 7"
		command(t, legacy)
		await(t, "a rule of iptables-legacy is seen", func() bool { return strings.Contains(f.queues(), "iptables-legacy table filter") })
		command(t, strings.Replace(legacy, "-A", "-D", 1))
		l.awaitForwarding(t, f, c)
	}
}

// TestFastpathLeavesOut: an interface whose packets a program has to see, and which is
// not named, does not close the fast path of the others; named, it does.
func TestFastpathLeavesOut(t *testing.T) {
	l := newForwardingLab(t)
	cable(t, "dmz0", "dmz1")
	command(t, "iptables-nft -A FORWARD -i dmz0 -j NFQUEUE --queue-num 7")
	_, f := l.open(t, testBPFFS(t), FastpathOptions{})
	c := l.dial(t, "flow", "udp4", "192.168.1.10:43000")
	l.awaitForwarding(t, f, c)
	mustAttach(t, f, "lan0", "wan0", "dmz0")
	if state := mustState(t, f); state.Open || !strings.HasSuffix(state.Closed, policy.FastpathQueues) {
		t.Errorf("with dmz0: open %v, closed: %q", state.Open, state.Closed)
	}
	mustAttach(t, f, "lan0", "wan0")
	l.awaitForwarding(t, f, c)
}
