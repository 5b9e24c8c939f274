// SPDX-License-Identifier: Apache-2.0

// Command failover lets a router die under living flows and counts what
// survives, with vippin and with the stack of today beside it: what "make
// bench-failover" runs. Every case builds a lab of its own.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"vippin/test/lab"
	"vippin/test/traffic/swarm"
)

func main() {
	if swarm.Worker() {
		return
	}
	opts, err := parse(os.Args[1:], os.Stderr)
	if err == nil {
		err = lab.Guard(func(ctx context.Context) error { return run(ctx, opts, os.Stdout, os.Stderr) })
	}
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(os.Stderr, "failover: interrupted; what was measured is kept")
		os.Exit(130)
	default:
		fmt.Fprintln(os.Stderr, "failover:", err)
		os.Exit(1)
	}
}

// options are what the command line says.
type options struct {
	cases  []Case
	file   string // path of the results without extension
	fresh  bool
	budget time.Duration
	json   bool
	list   bool
}

func parse(args []string, stderr io.Writer) (o options, err error) {
	flags := flag.NewFlagSet("failover", flag.ContinueOnError)
	flags.SetOutput(stderr)
	dir := flags.String("out", "docs/bench", "folder for results, tables and plots")
	everything := flags.Bool("full", false, "the whole matrix: hours; goes on where it was interrupted")
	resume := flags.Bool("resume", false, "go on where the last run was interrupted")
	fresh := flags.Bool("fresh", false, "forget the results of the last run")
	flags.DurationVar(&o.budget, "budget", 0, "begin no case after this time (default 23m, with -full none)")
	flags.BoolVar(&o.json, "j", false, "print the raw results as JSON")
	flags.BoolVar(&o.list, "list", false, "only print what would be measured")
	s := selection{
		kinds: []kind{survive}, arms: mainArms, faults: []string{hard}, firewalls: []string{stateful},
		families: []string{"ipv4"}, ages: []string{young}, ways: []string{oneWay}, only: []string{""},
		flows: []int{1000}, adverts: []int{100}, rounds: 1,
	}
	s.addTo(flags)
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("do not know what %q is for: there are flags only", flags.Args())
	}
	chosen := false
	flags.Visit(func(f *flag.Flag) { chosen = chosen || s.has(f.Name) })
	name := "failover"
	switch {
	case *everything && chosen:
		return o, errors.New("-full is everything: leave the other choices out")
	case *everything:
		name, o.cases = "failover-full", full()
	case chosen:
		name, o.cases = "failover-chosen", s.cases()
	default:
		o.cases = defaults()
		if o.budget == 0 {
			o.budget = 23 * time.Minute
		}
	}
	o.fresh = *fresh || !*everything && !*resume
	o.file = filepath.Join(*dir, name)
	return o, nil
}

// choices are the flags that choose cases; any of them replaces the default
// plan.
func (s *selection) choices() map[string]func(string) error {
	return map[string]func(string) error{
		"kinds":     words(&s.kinds, kinds),
		"arms":      words(&s.arms, armNames()),
		"faults":    words(&s.faults, faults),
		"firewalls": words(&s.firewalls, firewalls),
		"families":  words(&s.families, families),
		"ages":      words(&s.ages, ages),
		"ways":      words(&s.ways, ways),
		"only":      words(&s.only, []string{"tcp", "udp", "icmp"}),
		"flows":     numbers(&s.flows),
		"adverts":   numbers(&s.adverts),
		"rounds": func(text string) (err error) {
			s.rounds, err = strconv.Atoi(text)
			return err
		},
	}
}

func (s *selection) has(name string) bool { return s.choices()[name] != nil }

func (s *selection) addTo(flags *flag.FlagSet) {
	usage := map[string]string{
		"kinds":     fmt.Sprintf("comma list of %v", kinds),
		"arms":      fmt.Sprintf("comma list of %v", armNames()),
		"faults":    fmt.Sprintf("comma list of %v", faults),
		"firewalls": fmt.Sprintf("comma list of %v", firewalls),
		"families":  fmt.Sprintf("comma list of %v", families),
		"ages":      fmt.Sprintf("comma list of %v", ages),
		"ways":      fmt.Sprintf("comma list of %v; of the kinds other than survive", ways),
		"only":      "comma list of tcp, udp, icmp: flows of this protocol alone",
		"flows":     "comma list of numbers of flows, of each protocol",
		"adverts":   "comma list of advert intervals in ms",
		"rounds":    "how often everything is measured",
	}
	for name, set := range s.choices() {
		flags.Func(name, usage[name], set)
	}
}

func words[T ~string](to *[]T, known []T) func(string) error {
	return func(text string) error {
		*to = nil
		for _, item := range strings.Split(text, ",") {
			found := false
			for _, k := range known {
				found = found || string(k) == item
			}
			if !found {
				return fmt.Errorf("%q is none of %v", item, known)
			}
			*to = append(*to, T(item))
		}
		return nil
	}
}

func numbers(to *[]int) func(string) error {
	return func(text string) error {
		*to = nil
		for _, item := range strings.Split(text, ",") {
			n, err := strconv.Atoi(item)
			if err != nil || n <= 0 {
				return fmt.Errorf("%q is no number of them", item)
			}
			*to = append(*to, n)
		}
		return nil
	}
}

// run measures what has no result yet, and writes everything down.
func run(ctx context.Context, o options, stdout, stderr io.Writer) error {
	if o.list {
		for _, c := range o.cases {
			fmt.Fprintln(stdout, c.Key())
		}
		return nil
	}
	if err := lab.Root(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(o.file), 0o755); err != nil {
		return fmt.Errorf("make the folder for results: %w", err)
	}
	j, err := openJournal(o.file+".jsonl", o.fresh)
	if err != nil {
		return err
	}
	host := machine(ctx)
	r := runner{journal: j, machine: host, progress: stderr, budget: o.budget}
	measured := r.measure(ctx, o.cases)
	if len(j.results) == 0 {
		return measured
	}
	return errors.Join(measured, report(o, j.results, host, stdout))
}

// report prints and writes the tables and the plots.
func report(o options, results []Result, host string, stdout io.Writer) error {
	all := tables(results)
	text := fmt.Sprintf("# What survives a failover\n\nMade by `make bench-failover` on: %s.\n\n%s", host, explanation)
	for _, t := range all {
		text += t.markdown()
	}
	if err := os.WriteFile(o.file+".md", []byte(text), 0o644); err != nil {
		return fmt.Errorf("write the tables: %w", err)
	}
	if err := drawPlots(results, o.file); err != nil {
		return err
	}
	if o.json {
		encoder := json.NewEncoder(stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(results)
	}
	fmt.Fprintln(stdout, host)
	for _, t := range all {
		if err := t.terminal(stdout); err != nil {
			return err
		}
	}
	return nil
}

// explanation is for who reads the tables.
const explanation = `A flow has survived if, after the fault, a request was answered on the same client socket and the server saw it
come from the same address and port (of ICMP echo: identifier) as ever. Several inside hosts use the same source
ports, which a decoy has taken: NAT has given every counted flow another port at random, which a router without
the state cannot choose again by luck.

Arms: *vippin*: masquerade, vippin on both routers. *conntrackd*: snat to the VIP, conntrackd in FTFW mode with an
external cache that keepalived's script commits; *direct*: with DisableExternalCache; *-t*: the script has
"conntrackd -t", as the one in conntrackd's examples. *masquerade*: nothing else. *strict*: vippin with "mode: strict", where
a connection's first answer waits for the peer; *strict-alone*: without a peer. Faults: *hard*: the links set down
inside the router, keepalived killed; *crash*: the cables pulled at the switches, everything killed; *graceful*: keepalived
stopped. *stateful*: from the WAN only what belongs to established flows, no pick-up in mid-stream. *old*: 155 s, half of
the flows heard of every 25 s only.

The outage is the longest time between two answers at any of ten probes that ask every 2 ms; "from MASTER" begins
when the second of the two VIPs is on the new router. Percentages are cut off, not rounded.

*The youngest connections*: TCP connections are opened for one second, then the master is cut off at one moment (a BPF
program at the switches' ports loses every frame of its) and everything in it killed. Counted are those that their client
had by then; one goes on if a request was answered on it afterwards. What was on its way is neither kept nor lost: its client
knows of no connection yet, and asks again.

*How long a connection takes to be made*: from connect() until the client has it, the server 1 ms away. The labs of all arms
stand at the same time and make ten connections each in turn; "more than vippin" are the differences between the medians of
ten connections that were made beside each other.

*New connections while something is wrong*: each thing lasts 3 s, "after it" is the time until the peer is up again, and 2 s.
"Sent again": made after 0.9 s and more, so a SYN or its answer was lost; "failed": not made within 10 s. "Queue full": the
daemon is stopped, nobody gives verdicts. Of the answers that vippin marked, "held" had to wait; they went on when they were
"acked" by the peer, "timed out" after sync.strict_timeout, or were "released" since no peer could take the flow; "passed by" never
waited. These are counted from the beginning of the trouble to the end of "after it". Clients, server, both routers and their
daemons share the processors: answers that time out with nothing wrong say that these are busy.

`
