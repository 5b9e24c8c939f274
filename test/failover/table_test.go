// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vippin/test/traffic/swarm"
)

func TestStatistics(t *testing.T) {
	ten := []float64{10, 1, 9, 2, 8, 3, 7, 4, 6, 5}
	for name, c := range map[string][2]float64{
		"p50":                 {quantile(ten, 0.5), 5},
		"p95":                 {quantile(ten, 0.95), 10},
		"p95 of one":          {quantile([]float64{7}, 0.95), 7},
		"median of ten":       {median(ten), 5.5},
		"median of three":     {median([]float64{3, 1, 2}), 2},
		"spread":              {spread([]float64{2, 4, 3}), 2.0 / 3},
		"all":                 {share(10_000, 10_000), 100},
		"all but one":         {share(99_999, 100_000), 99.99},
		"none":                {share(0, 5), 0},
		"commit":              {ms(commitTime("commit has taken 0.024121 seconds\n…\ncommit has taken 1.5 seconds")), 1500},
		"no commit":           {ms(commitTime("")), 0},
		"missing of mappings": {float64(missing(map[mapping]bool{{}: true, {client: netip.MustParseAddrPort("[::]:1")}: true}, map[mapping]bool{{}: true})), 1},
	} {
		if c[0] != c[1] {
			t.Errorf("%s: %v, want %v", name, c[0], c[1])
		}
	}
	for name, v := range map[string]float64{"quantile": quantile(nil, 0.5), "median": median(nil), "spread": spread(nil), "share": share(0, 0)} {
		if !math.IsNaN(v) {
			t.Errorf("%s of nothing: %v", name, v)
		}
	}
}

// sample are two arms and a row of each kind.
func sample() []Result {
	c := Case{Kind: survive, Arm: "conntrackd", Fault: hard, Firewall: stateful, Family: "ipv4", Age: young, Flows: 1000, Adverts: 100}
	all := map[string]swarm.Survival{"tcp": {Flows: 1000, Survived: 1000}, "udp": {Flows: 1000, Survived: 999}, "icmp": {Flows: 1000}}
	results := []Result{{Case: c, Survival: all, Probes: 10, ProbesAlive: 10, OutageMs: 310, FirstMs: 0.5, AllMs: 2, CommitMs: 24}}
	c.Round = 1
	results = append(results, Result{Case: c, Survival: all, Probes: 10}) // no probe lived
	c.Arm, c.Round = "vippin", 0
	results = append(results, Result{Case: c, Survival: all, Probes: 10, ProbesAlive: 10, OutageMs: 305, FirstMs: 0.3, AllMs: 1.9})
	c = Case{Kind: newborn, Arm: "strict", Fault: crash, Firewall: stateful, Family: "ipv4", Only: "tcp", Flows: 2000, Adverts: 100}
	results = append(results, Result{Case: c, Unmade: 1, Survival: map[string]swarm.Survival{"tcp": {Flows: 1999, Survived: 1999}}})
	c.Round = 1
	results = append(results, Result{Case: c, Unmade: 3, Survival: map[string]swarm.Survival{"tcp": {Flows: 1997, Survived: 1995, Silent: 2}}})
	for _, arm := range []string{"strict", "vippin"} {
		c = Case{Kind: latency, Arm: arm, Family: "ipv4", Only: "tcp", Flows: 30}
		l := Latency{Made: 29, Failed: 1, P50: 1.2, P95: 1.5, P99: 2, Max: 3, Blocks: []float64{1.1, 1.2, 1.4}}
		if arm == "strict" {
			l.P50, l.Blocks = 1.25, []float64{1.15, 1.3, 1.4}
		}
		results = append(results, Result{Case: c, Latency: &l})
	}
	c = Case{Kind: trials, Arm: "strict", Family: "ipv4", Only: "tcp", Flows: 5000}
	for round := range 2 {
		c.Round = round
		results = append(results, Result{Case: c, Phases: []Phase{
			{Name: "sync link cut", Seconds: 3, Begun: 15000, Late: 2, Latency: Latency{Made: 14997, Failed: 3, P50: 20, P95: 21, Max: 1000}},
			{Name: "after it", Seconds: 2, Begun: 10000, Latency: Latency{Made: 10000, P50: 0.5, P95: 1.5, Max: 9},
				Exceptions: &Exceptions{Held: 25000, Acked: 10000, TimedOut: 14000, Released: 1000, PassedBy: int64(round)}},
		}})
	}
	for round, seconds := range []float64{2, 3, 4} {
		cpu := Case{Kind: cost, Arm: "vippin", Family: "ipv4", Way: oneWay, Flows: 100_000, Round: round}
		results = append(results, Result{Case: cpu, CPUSeconds: seconds, Replicated: 100_000, Missing: 7})
		cpu.Arm = "conntrackd"
		results = append(results, Result{Case: cpu, CPUSeconds: 2 * seconds, Replicated: 100_000})
	}
	return results
}

func TestTables(t *testing.T) {
	var got []string
	for _, table := range tables(sample()) {
		for _, line := range table.lines {
			got = append(got, strings.Join(line, " | "))
		}
	}
	want := []string{
		"hard, stateful, ipv4, young, 100 ms adverts | 1000 of each | vippin | 1 | 100.00 | 99.90 | 0.00 | 305/305 | 0.3/0.3 | 1.9/1.9 | -",
		"hard, stateful, ipv4, young, 100 ms adverts | 1000 of each | conntrackd | 2 | 100.00 | 99.90 | 0.00 | 310/310 | 0.5/0.5 | 2.0/2.0 | 24.0",
		"crash, stateful, ipv4, 100 ms adverts | 2000 in 1 s | strict | 2 | 3996 | 3994 | 99.94 | 2 | 1",
		"the server 1ms away, ipv4 | vippin | 1 | 29 | 1 | 1.200 | 1.500 | 2.000 | 3.0 | - | - to -",
		"the server 1ms away, ipv4 | strict | 1 | 29 | 1 | 1.250 | 1.500 | 2.000 | 3.0 | 0.050 | 0.000 to 0.100",
		"5000 new connections/s, ipv4 | strict | 2 | sync link cut | 5000 | 4999 | 20.00 | 21.0 | 1000 | 4 | 6 |  |  |  |  | ",
		"5000 new connections/s, ipv4 | strict | 2 | after it | 5000 | 5000 | 0.50 | 1.5 | 9 | 0 | 0 | 50000 | 20000 | 28000 | 2000 | 1",
		"cpu one-way ipv4 | 100000 | vippin | 3 | 3.00 | CPU s / 100,000 flows | 67 % | 0.50 | 21 of 300000 | ",
		"cpu one-way ipv4 | 100000 | conntrackd | 3 | 6.00 | CPU s / 100,000 flows | 67 % | 1.00 | 0 of 300000 | ",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("rows\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// What is written for a document: tables that render, plots that are SVG.
func TestReport(t *testing.T) {
	o := options{file: filepath.Join(t.TempDir(), "failover")}
	var out strings.Builder
	if err := report(o, sample(), "a machine", &out); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "vippin") || !strings.Contains(out.String(), "a machine") {
		t.Errorf("printed:\n%s", out.String())
	}
	for suffix, want := range map[string]string{
		".md": "| hard, stateful, ipv4, young, 100 ms adverts |", "-survival.svg": "<svg", "-outage.svg": "<svg", "-commit.svg": "<svg",
	} {
		text, err := os.ReadFile(o.file + suffix)
		if err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s: no %q in it (%v)", suffix, want, err)
		}
	}
	for line := range strings.Lines(survivalTable(rows(sample())).markdown()) {
		if cells := strings.Count(line, "|"); strings.HasPrefix(line, "|") && cells != 12 {
			t.Errorf("%d bars in %q", cells, line)
		}
	}
}

func TestMappings(t *testing.T) {
	client := netip.MustParseAddr("192.168.101.16")
	text := `udp      17 29 src=192.168.101.16 dst=198.51.100.10 sport=10000 dport=10461 [UNREPLIED] src=198.51.100.10 dst=198.51.100.2 sport=10461 dport=10001 mark=0 use=1
udp      17 src=192.168.101.16 dst=198.51.100.10 sport=10002 dport=10462 [UNREPLIED] [active since 1s]
udp      17 29 src=198.19.0.1 dst=198.19.0.2 sport=33320 dport=3780 src=198.19.0.2 dst=198.19.0.1 sport=3780 dport=33320
unknown  112 599 src=198.51.100.3 dst=224.0.0.18 src=224.0.0.18 dst=198.51.100.3 mark=0 use=1
conntrack v1.4.7 (conntrack-tools): 4 flow entries have been shown.
`
	port := netip.MustParseAddrPort
	want := map[mapping]bool{
		{port("192.168.101.16:10000"), port("198.51.100.10:10461"), port("198.51.100.2:10001")}: true,
		{port("192.168.101.16:10002"), port("198.51.100.10:10462"), netip.AddrPort{}}:           true,
	}
	got := parseEntries(text, client)
	if len(got) != len(want) || missing(want, got) != 0 {
		t.Errorf("entries %v, want %v", got, want)
	}
	flows, err := parseFlows(`{"vlan":2,"proto":"udp","client":"192.168.101.16:10000","remote":"198.51.100.10:10461","public":"198.51.100.2:10001"}
{"vlan":2,"proto":"tcp","client":"192.168.101.16:10000","remote":"198.51.100.10:10461","public":"198.51.100.2:10001"}
`, client)
	if err != nil || len(flows) != 1 || missing(flows, got) != 0 {
		t.Errorf("flows %v (%v)", flows, err)
	}
}

func TestProcessFigures(t *testing.T) {
	before, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); ; {
		now, err := cpuTime(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if now-before >= 20*time.Millisecond {
			break
		}
		if time.Since(start) > time.Minute {
			t.Fatalf("a minute of work cost %s", now-before)
		}
	}
	if octets, err := residentOctets(os.Getpid()); err != nil || octets < 1<<20 {
		t.Errorf("this process has %d octets (%v)", octets, err)
	}
}
