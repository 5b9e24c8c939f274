// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"vippin/policy"
	"vippin/test/lab"
)

// TestScripts plays the stories in testdata/scripts: what happens to two routers, in
// the order in which it happens. Beside the commands below they have testscript's own
// (stdout, stderr, cmp, …).
func TestScripts(t *testing.T) { play(t, "testdata/scripts") }

// TestTrunkScripts plays those of routers on a stick, which need 802.1Q.
func TestTrunkScripts(t *testing.T) { play(t, "testdata/scripts/trunk") }

func play(t *testing.T, dir string) {
	testscript.RunT(scriptT{t}, testscript.Params{
		Dir: dir,
		Setup: func(env *testscript.Env) error {
			env.Values[story{}] = &story{t: env.T().(scriptT).T}
			return nil
		},
		Cmds:               scriptCommands(),
		RequireUniqueNames: true,
	})
}

// scriptT lets the commands of a script have its *testing.T.
type scriptT struct{ *testing.T }

func (t scriptT) Run(name string, f func(testscript.T)) {
	t.T.Run(name, func(t *testing.T) { f(scriptT{t}) })
}

func (scriptT) Verbose() bool { return testing.Verbose() }

// story is a script that is being played.
type story struct {
	t *testing.T
	*pair
	flows *troop
}

// scriptCommands are what a script can do beside testscript's own commands:
//
//	lab [hosts=N] [single] [firewall] [trunk=tagged|native|qinq] [alone] [names]
//	                       builds one (lab.Options); with two routers keepalived runs on both, ra first
//	run ROUTER FILE        starts the daemon with groups and pins of a file, and its peer in sync:
//	role ROUTER ROLE       waits until it is MASTER, BACKUP, …
//	synced                 waits until both have told each other everything
//	vippin ROUTER VERB …   runs a verb that must succeed, or with ! fail
//	until TEXT ROUTER VERB …   repeats a verb until it says what the regular expression fits
//	sees vip|own           host 0 makes new flows (TCP, UDP, ping; IPv4 and IPv6): where the server sees them come from
//	flows N                living flows from all hosts: N of TCP, of UDP and of pings
//	known                  waits until both routers have every living flow
//	answered               waits for a further answer on each, all of them from the virtual IP as ever
//	keepalived stop|start ROUTER
//	crash|boot ROUTER      its cables and all of its programs; it boots without memory
func scriptCommands() map[string]func(*testscript.TestScript, bool, []string) {
	plain := map[string]func(st *story, args []string){
		"lab":    (*story).build,
		"run":    func(st *story, args []string) { st.run(st.router(args[0]), args[1]) },
		"role":   func(st *story, args []string) { st.becomes(st.router(args[0]), args[1]) },
		"synced": func(st *story, _ []string) { st.awaitSync() },
		"sees": func(st *story, args []string) {
			st.sees(st.Hosts[0], lab.ServerFar, map[string]lab.Ends{"vip": vip, "own": own}[args[0]])
		},
		"flows":      func(st *story, args []string) { st.flows = st.muster(st.number(args[0]), 20000, false) },
		"known":      func(st *story, _ []string) { st.awaitSync(); st.awaitAgreement(st.flows.count) },
		"answered":   func(st *story, _ []string) { st.flows.allAnswered() },
		"keepalived": func(st *story, args []string) { st.keepalived(args[0], st.router(args[1])) },
		"crash":      func(st *story, args []string) { st.must(st.Crash(st.router(args[0]))) },
		"boot":       func(st *story, args []string) { st.boot(st.router(args[0])) },
	}
	arguments := map[string]int{"run": 2, "role": 2, "sees": 1, "flows": 1, "keepalived": 2, "crash": 1, "boot": 1}
	commands := map[string]func(*testscript.TestScript, bool, []string){"vippin": vippinInScript, "until": untilInScript}
	for name, do := range plain {
		commands[name] = func(ts *testscript.TestScript, neg bool, args []string) {
			want, counted := arguments[name]
			if neg || counted && len(args) != want {
				ts.Fatalf("%s: wants %d arguments and no !", name, want)
			}
			if name == "run" {
				args[1] = ts.ReadFile(args[1])
			}
			st := storyOf(ts, name)
			do(st, args)
			if st.t.Failed() {
				ts.Fatalf("%s: see above", name)
			}
		}
	}
	return commands
}

// storyOf is a script's, which begins with its lab.
func storyOf(ts *testscript.TestScript, command string) *story {
	st := ts.Value(story{}).(*story)
	if (st.pair == nil) != (command == "lab") {
		ts.Fatalf("%s: a script has one lab, which is its first command", command)
	}
	return st
}

// vippinInScript leaves what the verb says to the script.
func vippinInScript(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("vippin: wants a router and a verb")
	}
	st := storyOf(ts, "vippin")
	out, complaint, exit := st.Vippin(st.router(args[0]), args[1:]...)
	fmt.Fprint(ts.Stdout(), out)
	fmt.Fprint(ts.Stderr(), complaint)
	if (exit != 0) != neg {
		ts.Fatalf("vippin %s: exit %d\n%s%s", strings.Join(args[1:], " "), exit, out, complaint)
	}
}

// untilInScript takes any exit: "status" has one for what is degraded.
func untilInScript(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("until: wants a text, a router and a verb, and no !")
	}
	text, err := regexp.Compile(args[0])
	ts.Check(err)
	st := storyOf(ts, "until")
	said := ""
	if err := st.await(args[0], func() (bool, error) {
		said, _, _ = st.Vippin(st.router(args[1]), args[2:]...)
		return text.MatchString(said), nil
	}); err != nil {
		ts.Fatalf("until: %v; at last vippin said\n%s", err, said)
	}
}

func (st *story) build(args []string) {
	var opts lab.Options
	for _, arg := range args {
		key, value, _ := strings.Cut(arg, "=")
		switch key {
		case "hosts":
			opts.Hosts = st.number(value)
		case "single":
			opts.SingleRouter = true
		case "firewall":
			opts.Firewall = true
		case "trunk":
			opts.Trunk = lab.Trunk(value)
		case "alone":
			opts.TrunkAlone = true
		case "names":
			opts.TrunkNames = true
		default:
			st.t.Fatalf("lab: %q is not known", arg)
		}
	}
	_, name, _ := strings.Cut(st.t.Name(), "/")
	s := setScene(st.t, name, opts)
	st.pair = &pair{scene: s}
	if !opts.SingleRouter {
		s.must(s.AddSyncLink())
		s.must(s.StartRouters(s.ctx, lab.Keepalived{}))
	}
}

func (st *story) run(r *lab.Router, pins string) {
	if len(st.Routers()) > 1 {
		pins = st.config(r, pins)
	}
	st.start(r, pins)
}

func (st *story) becomes(r *lab.Router, role string) {
	var want policy.Role
	st.must(want.UnmarshalText([]byte(role)))
	st.awaitRole(r, want)
}

func (st *story) keepalived(what string, r *lab.Router) {
	switch what {
	case "stop":
		st.must(r.Keepalived().Stop())
	case "start":
		st.must(r.Keepalived().Restart())
	default:
		st.t.Fatalf("keepalived: %q is neither stop nor start", what)
	}
}

// boot gives a router its cables back, and keepalived, but no daemon.
func (st *story) boot(r *lab.Router) {
	st.must(st.PlugSync(r))
	st.must(st.PowerOn(st.ctx, r))
	_, err := st.StartKeepalived(r, lab.Keepalived{NoPreempt: true})
	st.must(err)
}

func (st *story) router(name string) *lab.Router {
	for _, r := range st.Routers() {
		if r.Name == name {
			return r
		}
	}
	st.t.Fatalf("no router is called %q", name)
	return nil
}

func (st *story) number(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		st.t.Fatalf("%q is no number", text)
	}
	return n
}
