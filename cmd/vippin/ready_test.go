// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vippin/policy"
	"vippin/policy/natsync"
)

func sampleReady() []policy.ReadyStatus {
	return []policy.ReadyStatus{
		{Group: "RouterCore", Ready: true, Why: "this router is MASTER"},
		{Group: "20/voip", Why: "router-b is MASTER, and not all of its flows are here yet", Waiting: 12.25},
	}
}

func TestShowingReady(t *testing.T) {
	for _, c := range []struct {
		name, args string
		code       int
	}{
		{"ready", "ready", exitFailed},
		{"ready-json", "ready -j", exitFailed},
		{"ready-group", "ready RouterCore", exitDone},
		{"ready-group-json", "ready 20/voip -j", exitFailed},
		{"ready-unknown", "ready RouterEdge", exitUsage},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newRig(t)
			control := sampleController()
			control.ready = sampleReady()
			b.serve(control)
			code, stdout, stderr := b.run(strings.Fields(c.args)...)
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			golden(t, c.name, []byte(stdout+stderr))
		})
	}
}

// Only "not ready" is exit 1: who knows nothing keeps no router down.
func TestReadyIsNotKnown(t *testing.T) {
	t.Parallel() // it waits for an answer that does not come
	check := func(name string, b *rig, argss ...string) {
		t.Helper()
		for _, args := range argss {
			code, stdout, stderr := b.run(strings.Fields(args)...)
			if code != exitDone || !strings.Contains(stderr, "counts as ready") {
				t.Errorf("%s, %s: exit code %d, %q", name, args, code, stderr)
			}
			if want := map[bool]string{true: "[]\n"}[args == "ready -j"]; stdout != want {
				t.Errorf("%s, %s: wrote %q", name, args, stdout)
			}
		}
	}
	check("no daemon", newRig(t), "ready", "ready RouterCore", "ready -j")
	b := newRig(t)
	control := sampleController()
	control.err = errors.New("the loop is stuck")
	b.serve(control)
	check("a daemon in trouble", b, "ready", "ready -j")
	b = newRig(t)
	b.configure("pins: [")
	check("a broken configuration", b, "ready RouterCore")
	b = newRig(t)
	b.dial = func(context.Context, string) (net.Conn, error) { // a daemon that is stopped
		here, there := net.Pipe()
		t.Cleanup(func() { there.Close() })
		return here, nil
	}
	check("no answer", b, "ready")
}

func TestVRRPNotify(t *testing.T) {
	for args, want := range map[string]policy.Notification{
		"RouterCore MASTER":          {Kind: "GROUP", Name: "RouterCore", State: "MASTER"},
		"GROUP RouterCore STOP":      {Kind: "GROUP", Name: "RouterCore", State: "STOP"},
		"GROUP RouterCore FAULT 0":   {Kind: "GROUP", Name: "RouterCore", State: "FAULT"},
		"INSTANCE VI_2 BACKUP 150":   {Kind: "INSTANCE", Name: "VI_2", State: "BACKUP", Priority: 150},
		"INSTANCE MASTER BACKUP 255": {Kind: "INSTANCE", Name: "MASTER", State: "BACKUP", Priority: 255},
		"INSTANCE BACKUP":            {Kind: "GROUP", Name: "INSTANCE", State: "BACKUP"},
	} {
		b := newRig(t)
		control := sampleController()
		b.serve(control)
		code, _, stderr := b.run(append([]string{"vrrp-notify"}, strings.Fields(args)...)...)
		if code != exitDone || len(control.notified) != 1 || control.notified[0] != want {
			t.Errorf("%s: exit code %d, told %+v, %q", args, code, control.notified, stderr)
		}
	}
	for args, stderr := range map[string]string{
		"RouterCore":                  "accepts between 2 and 4 arg",
		"RouterCore master":           `unknown state "master"`,
		"RouterCore DELETED":          `unknown state "DELETED"`,
		"VRRP RouterCore MASTER":      `unknown kind "VRRP"`,
		"GROUP RouterCore MASTER 256": `priority "256"`,
		"GROUP RouterCore MASTER -1":  "unknown shorthand flag",
		"GROUP RouterCore MASTER 1 2": "accepts between 2 and 4 arg",
		"R\x1b[2J MASTER":             "control characters",
	} {
		b := newRig(t)
		control := sampleController()
		b.serve(control)
		code, _, complaint := b.run(append([]string{"vrrp-notify"}, strings.Split(args, " ")...)...)
		if code != exitUsage || !strings.Contains(complaint, stderr) || len(control.notified) != 0 {
			t.Errorf("%q: exit code %d, %q, told %v", args, code, complaint, control.notified)
		}
	}
	b := newRig(t)
	if code, _, stderr := b.run("vrrp-notify", "RouterCore", "MASTER"); code != exitFailed || !strings.Contains(stderr, "no daemon runs") {
		t.Errorf("exit code %d, %q", code, stderr)
	}
	control := sampleController()
	control.err = &unknownGroupError{Group: "Core", Known: []string{"RouterCore", "20/voip"}}
	b.serve(control)
	if code, _, stderr := b.run("vrrp-notify", "Core", "MASTER"); code != exitFailed || !strings.Contains(stderr, `unknown group "Core" (there are: RouterCore, 20/voip)`) {
		t.Errorf("exit code %d, %q", code, stderr)
	}
}

func TestServerTakesNotifications(t *testing.T) {
	b := newRig(t)
	control := sampleController()
	b.serve(control)
	const good = `{"kind":"GROUP","name":"RouterCore","state":"MASTER","priority":0}`
	for _, c := range []struct {
		method, path, body string
		code               int
		error              string
	}{
		{"POST", "/v1/notify", good, 200, ""},
		{"GET", "/v1/notify", "", 405, ""},
		{"GET", "/v1/ready", "", 200, ""},
		{"POST", "/v1/notify", good + good, 400, "more than one"},
		{"POST", "/v1/notify", strings.Replace(good, "name", "nome", 1), 400, "unknown field"},
		{"POST", "/v1/notify", strings.Replace(good, "MASTER", "MASTER_RX_LOWER_PRI", 1), 400, "unknown state"},
		{"POST", "/v1/notify", strings.Replace(good, "GROUP", "FIFO", 1), 400, "unknown kind"},
		{"POST", "/v1/notify", strings.Replace(good, "RouterCore", "", 1), 400, "no name"},
		{"POST", "/v1/notify", strings.Replace(good, "RouterCore", strings.Repeat("x", notifyNameMax+1), 1), 400, "too long"},
		{"POST", "/v1/notify", strings.Replace(good, "0}", "256}", 1), 400, "read request"},
		{"POST", "/v1/notify", strings.Replace(good, "RouterCore", strings.Repeat("x", maxRequestBody), 1), 400, "too large"},
		{"POST", "/v1/notify", "", 400, "read request"},
	} {
		if code, answer := b.ask(c.method, c.path, c.body); code != c.code || !strings.Contains(answer.Error, c.error) {
			t.Errorf("%s %s %.40s: %d %q, want %d %q", c.method, c.path, c.body, code, answer.Error, c.code, c.error)
		}
	}
	if len(control.notified) != 1 {
		t.Errorf("told %d times", len(control.notified))
	}
}

func TestNotifyNeedsRights(t *testing.T) {
	b := newRig(t)
	if os.Geteuid() == 0 {
		b.dialAs(1001)
	}
	control := sampleController()
	b.serveAs(control, access{self: uint32(os.Geteuid()) + 1, group: func() string { return "vippin" }, accounts: fakeAccounts{}})
	code, _, stderr := b.run("vrrp-notify", "RouterCore", "MASTER")
	if code != exitFailed || !strings.Contains(stderr, "may look but not change") || len(control.notified) != 0 {
		t.Errorf("exit code %d, %q, told %v", code, stderr, control.notified)
	}
}

// keeping is a readyKeeper with a clock and a loop of the test's own.
type keeping struct {
	*readyKeeper
	t      *testing.T
	dir    string
	mu     sync.Mutex
	now    time.Duration
	events []policy.Event
}

func keep(t *testing.T, peers ...string) *keeping {
	k := &keeping{t: t, dir: t.TempDir(), now: time.Hour}
	config := policy.DefaultConfig("", "router-a")
	config.Sync.ReadyFile = filepath.Join(k.dir, "ready")
	for _, name := range peers {
		config.Sync.Peers = append(config.Sync.Peers, policy.PeerConfig{Name: name})
	}
	e := &env{monotonic: func() time.Duration { k.mu.Lock(); defer k.mu.Unlock(); return k.now }}
	k.readyKeeper = newReadyKeeper(e, slog.New(slog.DiscardHandler), func(event policy.Event) { k.events = append(k.events, event) }, config)
	return k
}

// plan names the groups and makes this router BACKUP of each.
func (k *keeping) plan(groups ...string) {
	var plan policy.Plan
	for _, name := range groups {
		plan.Groups = append(plan.Groups, policy.PlanGroup{Name: name})
		k.SetRole(name, policy.RoleBackup)
	}
	k.SetPlan(plan)
}

// say has a peer tell of its groups, by the authority that it is believed by.
func (k *keeping) say(authority *natsync.Authority, peer string, groups ...natsync.GroupState) {
	authority.Heard(peer, "key", groups)
	k.Believed(peer, authority)
}

// files writes, and returns what the files say, without the newlines.
func (k *keeping) files() map[string]string {
	k.t.Helper()
	k.write(k.decide())
	entries, err := os.ReadDir(k.dir)
	if err != nil {
		k.t.Fatal(err)
	}
	say := map[string]string{}
	for _, entry := range entries {
		text, err := os.ReadFile(filepath.Join(k.dir, entry.Name()))
		if err != nil {
			k.t.Fatal(err)
		}
		if !strings.HasSuffix(string(text), "\n") {
			k.t.Errorf("%s says %q", entry.Name(), text)
		}
		say[entry.Name()] = strings.TrimSuffix(string(text), "\n")
	}
	return say
}

func (k *keeping) want(want map[string]string) {
	k.t.Helper()
	if got := k.files(); fmt.Sprint(got) != fmt.Sprint(want) {
		k.t.Errorf("files %v, want %v", got, want)
	}
}

func TestReadyFiles(t *testing.T) {
	k := keep(t, "router-b")
	k.plan("core", "20/voip")
	k.want(map[string]string{"ready": "0", "ready.core": "0", "ready.20_voip": "0"})
	authority := natsync.NewAuthority("own")
	authority.SetRole("core", policy.RoleBackup)
	authority.SetRole("20/voip", policy.RoleBackup)
	k.Joined("router-b")
	k.say(authority, "router-b", natsync.GroupState{Name: "core", Role: policy.RoleMaster, Epoch: 1})
	k.SetRole("20/voip", policy.RoleMaster)
	k.want(map[string]string{"ready": "0", "ready.core": "0", "ready.20_voip": "1"})
	if s := k.Statuses(); !strings.HasPrefix(s[0].Why, "router-b is MASTER") || s[0].Group != "core" || s[1].Why != "this router is MASTER" {
		t.Errorf("%+v", s)
	}
	k.Whole("router-b", []string{"core", ""})
	k.want(map[string]string{"ready": "1", "ready.core": "1", "ready.20_voip": "1"})
	var told []string
	for _, event := range k.events {
		told = append(told, fmt.Sprint(event.Kind, " ", event.Group, " ", event.Over))
	}
	if want := []string{"ready core true", "ready 20/voip true", "ready 20/voip false", "ready core false"}; !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
	k.Left("router-b")
	k.want(map[string]string{"ready": "1", "ready.core": "1", "ready.20_voip": "1"})
}

// What others do to the files is put right; what is not tended holds nobody back.
func TestReadyFilesArePutRight(t *testing.T) {
	k := keep(t, "router-b")
	k.plan("core", "edge")
	k.want(map[string]string{"ready": "0", "ready.core": "0", "ready.edge": "0"})
	for name, text := range map[string]string{"ready": "1\n", "ready.core": ""} {
		if err := os.WriteFile(filepath.Join(k.dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(k.dir, "ready.edge")); err != nil {
		t.Fatal(err)
	}
	k.want(map[string]string{"ready": "0", "ready.core": "0", "ready.edge": "0"})
	k.SetPlan(policy.Plan{Groups: []policy.PlanGroup{{Name: "core"}}})
	k.want(map[string]string{"ready": "0", "ready.core": "0", "ready.edge": "1"})
	k.Set(policy.SyncConfig{ReadyFile: filepath.Join(k.dir, "may"), ReadyTimeout: time.Minute}) // no peers any more
	k.want(map[string]string{"may": "1", "may.core": "1", "ready": "1", "ready.core": "1", "ready.edge": "1"})
}

func TestReadyFileCannotBeWritten(t *testing.T) {
	k := keep(t, "router-b")
	k.plan("core")
	k.Set(policy.SyncConfig{ReadyFile: filepath.Join(k.dir, "missing", "ready"), ReadyTimeout: time.Minute})
	k.files()
	k.files()
	if w := k.warnings(); len(w) != 1 || !strings.Contains(w[0], "missing") || !strings.Contains(w[0], "2 attempts") {
		t.Errorf("warnings %q", w)
	}
	if n := len(k.events); n != 1 { // told once
		t.Errorf("%d events: %+v", n, k.events)
	}
	if err := os.Mkdir(filepath.Join(k.dir, "missing"), 0o755); err != nil {
		t.Fatal(err)
	}
	k.write(k.decide())
	if w := k.warnings(); len(w) != 0 {
		t.Errorf("warnings %q", w)
	}
}

// Run is what writes: at once when something happens, by time alone, and with the
// adverts' word.
func TestReadyKeeperRuns(t *testing.T) {
	k := keep(t, "router-b")
	k.plan("core")
	asked := make(chan []string)
	heard := make(chan bool)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- k.Run(ctx, func(ctx context.Context, groups []string) (map[string]bool, error) {
			select {
			case asked <- groups:
				return map[string]bool{"core": <-heard}, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		})
	}()
	says := func(want string) bool {
		text, _ := os.ReadFile(filepath.Join(k.dir, "ready.core"))
		return string(text) == want
	}
	waitFor(t, func() bool { return says(readyNo) }) // before anybody has been asked
	if groups := <-asked; !slices.Equal(groups, []string{"core"}) {
		t.Errorf("asked for %v", groups)
	}
	heard <- true
	waitFor(t, func() bool { return strings.Contains(k.Statuses()[0].Why, "by its adverts") })
	k.mu.Lock()
	k.now += 10 * time.Second // longer than the grace
	k.mu.Unlock()
	<-asked
	heard <- false
	waitFor(t, func() bool { return says(readyYes) })
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if !says(readyYes) {
		t.Error("the file did not stay")
	}
}

func TestPeerWords(t *testing.T) {
	w := newPeerWords()
	w.Say("b", 1, []natsync.GroupState{{Name: "core", Role: policy.RoleMaster}})
	w.Say("c", 2, nil)
	w.Gone("b")
	<-w.wake
	if got := w.Take(); len(got) != 2 || !got["b"].gone || got["c"].gone || got["c"].at != 2 {
		t.Errorf("%+v", got)
	}
	select {
	case <-w.wake:
		t.Error("woken for nothing")
	default:
	}
	if len(w.Take()) != 0 {
		t.Error("the same again")
	}
}
