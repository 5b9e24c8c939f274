// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"vippin/policy"
)

func TestExitCodes(t *testing.T) {
	cases := []struct {
		args   string
		code   int
		stderr string // a part of it
	}{
		{"", exitUsage, "Usage:"},
		{"pin", exitUsage, "Usage:"},
		{"bogus", exitUsage, `unknown verb "bogus"`},
		{"pin bogus", exitUsage, `unknown verb "bogus" for "vippin pin"`},
		{"--bogus", exitUsage, "unknown flag"},
		{"status extra", exitUsage, "unknown command"},
		{"status --bogus", exitUsage, `(see "vippin status --help")`},
		{"flows extra", exitUsage, "unknown command"},
		{"vrrp --force", exitUsage, "unknown flag"},
		{"monitor extra", exitUsage, "unknown command"},
		{"check extra", exitUsage, "unknown command"},
		{"check -c", exitUsage, "needs an argument"},
		{"run -j", exitUsage, "unknown shorthand flag"},
		{"load --force", exitUsage, "unknown flag"},
		{"unload extra", exitUsage, "unknown command"},
		{"reload extra", exitUsage, "unknown command"},
		{"version extra", exitUsage, "unknown command"},
		{"pin ls extra", exitUsage, "unknown command"},
		{"pin on", exitUsage, "requires at least 1 arg"},
		{"pin on 2,,3", exitUsage, "between two commas"},
		{"pin off 5000", exitUsage, "5000"},
		{"pin reset 9-4", exitUsage, "backwards"},
		{"v", exitUsage, "unknown verb"}, // version or vrrp
		{"status", exitFailed, "no daemon runs"},
		{"vrrp", exitFailed, "no daemon runs"},
		{"monitor", exitFailed, "no daemon runs"},
		{"reload", exitFailed, "no daemon runs"},
		{"pin on 2", exitFailed, "nothing is loaded"},
		{"unload", exitFailed, "nothing is loaded"},
		{"check -c /nonexistent/vippin.yaml", exitFailed, ""},
		{"pin ls -c /nonexistent/vippin.yaml", exitFailed, "/nonexistent/vippin.yaml"},
		{"run -c /nonexistent/vippin.yaml", exitFailed, "vippin:"},
		{"load", exitDone, ""},
		{"version", exitDone, ""},
		{"vers", exitDone, ""},
		{"pi l", exitFailed, "nothing is loaded"},
		{"p l", exitUsage, "unknown verb"}, // pin or peers
		{"fastpath", exitUsage, "Usage:"},
		{"fastpath on 2", exitUsage, "unknown command"},
		{"fastpath bogus", exitUsage, "unknown verb"},
		{"fastpath on", exitFailed, "no daemon runs"},
		{"fastpath reset", exitFailed, "no daemon runs"},
		{"fastpath ls", exitFailed, "nothing is loaded"},
		{"peers extra", exitUsage, "unknown command"},
		{"peers", exitFailed, "no daemon runs"},
		{"keygen extra", exitUsage, "unknown command"},
		{"keygen -j", exitUsage, "unknown shorthand flag"},
		{"trust", exitUsage, "NAME of a peer and its public KEY"},
		{"trust router-b", exitUsage, "NAME of a peer and its public KEY"},
		{"trust router-b KEY", exitUsage, "is not a public key"},
		{"trust ls extra", exitUsage, "unknown command"},
		{"trust rm", exitUsage, "NAME of a peer"},
		{"status --help", exitDone, ""},
		{"help pin on", exitDone, ""},
		{"completion bash", exitDone, ""},
	}
	for _, c := range cases {
		t.Run(c.args, func(t *testing.T) {
			b := newRig(t)
			code, _, stderr := b.run(strings.Fields(c.args)...)
			if code != c.code {
				t.Errorf("exit code %d, want %d: %s", code, c.code, stderr)
			}
			if !strings.Contains(stderr, c.stderr) {
				t.Errorf("stderr %q lacks %q", stderr, c.stderr)
			}
		})
	}
}

func TestOnlyRoot(t *testing.T) {
	for _, args := range []string{"run", "load", "unload", "pin on 2"} {
		b := newRig(t)
		b.plane = &fakeDataplane{}
		b.euid = 1000
		code, _, stderr := b.run(strings.Fields(args)...)
		if code != exitFailed || !strings.Contains(stderr, "only root") {
			t.Errorf("%s: exit code %d, %q", args, code, stderr)
		}
	}
}

func TestNothingToSeeWithoutRights(t *testing.T) {
	b := newRig(t)
	b.euid = 1000
	b.open = func(string) (dataplane, error) { return nil, fmt.Errorf("open pinned map: %w", os.ErrPermission) }
	code, _, stderr := b.run("pin", "ls")
	if code != exitFailed || !strings.Contains(stderr, "no daemon runs") || !strings.Contains(stderr, "only root") {
		t.Errorf("exit code %d, %q", code, stderr)
	}
}

// TestHelp asks of every verb what a newcomer needs.
func TestHelp(t *testing.T) {
	c := &cli{env: newRig(t).env}
	var visit func(cmd *cobra.Command)
	visit = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			visit(sub)
		}
		if cmd.Name() == "version" || cmd.Hidden {
			return
		}
		if cmd.Long == "" || cmd.Example == "" || cmd.Short == "" {
			t.Errorf("%s lacks a text or an example", cmd.CommandPath())
		}
		for line := range strings.Lines(cmd.Long) {
			if len(line) > 81 {
				t.Errorf("%s: too long for 80 columns: %q", cmd.CommandPath(), line)
			}
		}
	}
	visit(c.root())
}

func TestManPages(t *testing.T) {
	b := newRig(t)
	dir := filepath.Join(b.dir, "man")
	if code, _, stderr := b.run("man", dir); code != exitDone {
		t.Fatal(stderr)
	}
	page, err := os.ReadFile(filepath.Join(dir, "vippin-pin-on.8"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(page), ".SH EXAMPLE") {
		t.Errorf("no examples in\n%s", page)
	}
	if _, err := os.Stat(filepath.Join(dir, "vippin-man.8")); err == nil {
		t.Error("the hidden verb has a page")
	}
}

func TestRunDirOrder(t *testing.T) {
	b := newRig(t)
	config, env, flag := filepath.Join(b.dir, "run"), filepath.Join(b.dir, "env"), filepath.Join(b.dir, "flag")
	_, _, stderr := b.run("status")
	wantIn(t, stderr, b.plain(config))
	b.vars["VIPPIN_RUN_DIR"] = env
	_, _, stderr = b.run("status")
	wantIn(t, stderr, b.plain(env))
	_, _, stderr = b.run("status", "--run-dir", flag)
	wantIn(t, stderr, b.plain(flag))
}

func wantIn(t *testing.T, text, part string) {
	t.Helper()
	if !strings.Contains(text, part) {
		t.Errorf("%q lacks %q", text, part)
	}
}

// TestLookingWithBrokenConfig: while the file is being edited one may look.
func TestLookingWithBrokenConfig(t *testing.T) {
	b := newRig(t)
	b.serve(sampleController())
	b.configure("pins: [")
	b.vars["VIPPIN_RUN_DIR"] = b.runPath()
	if code, stdout, stderr := b.run("pin", "ls"); code != exitDone || !strings.Contains(stdout, "eth0.2") {
		t.Errorf("exit code %d, %q %q", code, stdout, stderr)
	}
	b.vars["VIPPIN_RUN_DIR"] = filepath.Join(b.dir, "nothing")
	_, _, stderr := b.run("pin", "ls")
	wantIn(t, stderr, "vippin.yaml") // why the default places were looked at
}

func TestLoad(t *testing.T) {
	b := newRig(t)
	if code, _, stderr := b.run("load"); code != exitDone {
		t.Fatal(stderr)
	}
	d := b.plane
	if d.applied != 1 || d.swept != 1 || d.closed != 1 {
		t.Errorf("applied %d, swept %d, closed %d times", d.applied, d.swept, d.closed)
	}
	if d.loaded.BPFFS != "/sys/fs/bpf/vippin-test" || d.loaded.MaxFlows != 262144 {
		t.Errorf("loaded with %+v", d.loaded)
	}
	if d.settings.Lease != 2*time.Second || d.settings.TagMark != 0x70 || d.settings.TagMask != 0xf0 || d.settings.TagPriority != 7 {
		t.Errorf("settings %+v", d.settings)
	}
	core, voip := d.plan.Pins[0].ID, d.plan.Pins[1].ID
	if d.fixed[core] || d.fixed[voip] {
		t.Error("a role is fixed without --master")
	}
	if code, _, stderr := b.run("load", "--master"); code != exitDone {
		t.Fatal(stderr)
	}
	if d.fixed[core] || d.roles[core] != policy.RoleBackup {
		t.Error("--master fixed the role of a pin whose adverts are seen")
	}
	if !d.fixed[voip] || d.roles[voip] != policy.RoleMaster {
		t.Error("--master did not fix the role of a pin without VRRP")
	}
	if d.plan.Pins[0].ID != core || d.plan.Pins[1].ID != voip {
		t.Error("loading again changed the pins' numbers")
	}
	if _, _, err := b.run("load"); d.fixed[voip] {
		t.Errorf("without --master the role stays fixed (%s)", err)
	}
}

func TestDaemonIsNotPassedBy(t *testing.T) {
	for args, way := range map[string]string{"load": "vippin reload", "unload": "stop it first", "unload --force": "stop it first"} {
		b := newRig(t)
		b.plane = &fakeDataplane{}
		b.serve(sampleController())
		code, _, stderr := b.run(strings.Fields(args)...)
		if code != exitFailed || !strings.Contains(stderr, "pid 4711") || !strings.Contains(stderr, way) {
			t.Errorf("%s: exit code %d, %q", args, code, stderr)
		}
		if b.plane.applied != 0 || b.plane.unloaded {
			t.Errorf("%s: the dataplane was touched", args)
		}
	}
}

func TestUnload(t *testing.T) {
	b := newRig(t)
	b.run("load")
	b.plane.mappings = sampleMappings(1)
	b.plane.broken = 2
	code, _, stderr := b.run("unload")
	if code != exitFailed || b.plane.unloaded || !strings.Contains(stderr, "2 connections would break") {
		t.Errorf("exit code %d, unloaded %v, %q", code, b.plane.unloaded, stderr)
	}
	code, stdout, stderr := b.run("unload", "--force")
	if code != exitDone || !b.plane.unloaded || !strings.Contains(stderr, "2 connections could not") || !strings.Contains(stdout, "0 living") {
		t.Errorf("exit code %d, unloaded %v, %q %q", code, b.plane.unloaded, stdout, stderr)
	}
}

func TestToggleWithoutDaemon(t *testing.T) {
	b := newRig(t)
	b.run("load")
	if code, _, stderr := b.run("pin", "on", "20"); code != exitDone {
		t.Fatal(stderr)
	}
	if code, _, stderr := b.run("pin", "off", "eth0.2"); code != exitDone {
		t.Fatal(stderr)
	}
	wantPin := func(i int, enabled bool, by policy.EnabledBy) {
		t.Helper()
		if p := b.plane.plan.Pins[i]; p.Enabled != enabled || p.EnabledBy != by {
			t.Errorf("pin %s: enabled %v by %s", p.Key(), p.Enabled, p.EnabledBy)
		}
	}
	wantPin(0, false, policy.EnabledByToggle)
	wantPin(1, true, policy.EnabledByToggle)
	b.run("load") // as after a reboot: the toggles outlive it
	wantPin(0, false, policy.EnabledByToggle)
	wantPin(1, true, policy.EnabledByToggle)
	if code, _, _ := b.run("pin", "on", "2,30"); code != exitFailed {
		t.Error("an unknown VLAN is no failure")
	}
	wantPin(0, false, policy.EnabledByToggle) // nothing changed
	if code, _, stderr := b.run("pin", "reset", "2,20"); code != exitDone {
		t.Fatal(stderr)
	}
	wantPin(0, true, policy.EnabledByConfig)
	wantPin(1, false, policy.EnabledByConfig)
	toggles, err := toggleStore{dir: filepath.Join(b.dir, "state")}.Load()
	if err != nil || len(toggles) != 0 {
		t.Errorf("toggles %v, %v", toggles, err)
	}
}

func TestResetNeedsTheConfiguration(t *testing.T) {
	b := newRig(t)
	b.run("load")
	b.configure("node: router-a\nrun_dir: DIR/run\nstate_dir: DIR/state\npins: [{vlan: 2, vips: [198.51.100.2]}]\n")
	code, _, stderr := b.run("pin", "reset", "20")
	if code != exitFailed || !strings.Contains(stderr, "has no such pin any more") {
		t.Errorf("exit code %d, %q", code, stderr)
	}
}

func TestDamagedTogglesAreNotOverwritten(t *testing.T) {
	b := newRig(t)
	b.run("load")
	state := filepath.Join(b.dir, "state")
	if err := os.MkdirAll(state, 0o755); err != nil {
		t.Fatal(err)
	}
	damaged := filepath.Join(state, togglesName)
	if err := os.WriteFile(damaged, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := b.run("pin", "on", "20"); code != exitFailed || !strings.Contains(stderr, damagedText) {
		t.Errorf("exit code %d, %q", code, stderr)
	}
	if data, _ := os.ReadFile(damaged); string(data) != "{" {
		t.Errorf("overwritten with %q", data)
	}
	for _, args := range []string{"load", "check"} { // the configuration decides
		code, stdout, stderr := b.run(args)
		if code != exitDone || !strings.Contains(stdout, damagedText) {
			t.Errorf("%s: exit code %d, %q %q", args, code, stdout, stderr)
		}
	}
}

const damagedText = "the file is damaged"

// TestMonitor reads events until Ctrl-C.
func TestMonitor(t *testing.T) {
	for _, args := range [][]string{{"monitor"}, {"monitor", "-j"}} {
		b := newRig(t)
		control := sampleController()
		b.serve(control)
		ctx, interrupt := context.WithCancel(t.Context())
		defer interrupt()
		code := make(chan int, 1)
		go func() { c, _, _ := b.runContext(ctx, args...); code <- c }()
		master := policy.RoleMaster
		waitFor(t, func() bool { return control.hub.count() == 1 })
		for _, event := range []policy.Event{
			{Kind: "role", Group: "RouterCore", Role: &master, Detail: "MASTER, was BACKUP"},
			{Kind: "pin", Pin: "20/voip", Detail: "on (toggle)"},
			{Kind: "conflict", Group: "RouterCore", Detail: "two\x1b[2Jmasters"},
			{Kind: "reload", Detail: "2 pins in force"},
		} {
			control.hub.Publish(event)
		}
		waitFor(t, func() bool { return strings.Count(b.stdout.String(), "\n") == 4 })
		interrupt()
		if c := <-code; c != exitDone {
			t.Errorf("%v: exit code %d after Ctrl-C: %s", args, c, b.stderr.String())
		}
		golden(t, strings.Join(args, ""), []byte(b.stdout.String()))
	}
}

// waitFor waits for something that has no event of its own.
func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatal("waited too long")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestCompletionOfVLANs(t *testing.T) {
	b := newRig(t)
	b.serve(sampleController())
	code, stdout, stderr := b.run("__complete", "pin", "on", "2,")
	if code != exitDone {
		t.Fatal(stderr)
	}
	for _, want := range []string{"2,20/voip\teth0.20", "2,100.20\teth1.100.20"} {
		wantIn(t, stdout, want)
	}
}

func TestJSONIsOneObjectALine(t *testing.T) {
	b := newRig(t)
	b.serve(sampleController())
	_, stdout, _ := b.run("flows", "-j")
	lines := strings.Split(strings.TrimSuffix(stdout, "\n"), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines", len(lines))
	}
	for _, line := range lines {
		var flow policy.FlowStatus
		if err := json.Unmarshal([]byte(line), &flow); err != nil {
			t.Error(err)
		}
	}
}
