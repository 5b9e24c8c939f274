// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vippin/policy"
)

const migrateScenes = "../../policy/migrate/testdata"

// migratedConfig migrates to a new file, holds it against "vippin check", and
// returns what it says.
func (b *rig) migratedConfig(args ...string) *policy.Config {
	b.t.Helper()
	file := filepath.Join(b.dir, "new.yaml")
	if code, _, stderr := b.run(append([]string{"migrate", "-o", file, "--force"}, args...)...); code != exitDone {
		b.t.Fatalf("migrate %v: exit code %d, %s", args, code, stderr)
	}
	told := b.stderr.String()
	if code, stdout, stderr := b.run("check", "-c", file); code != exitDone || !strings.Contains(stdout, "is in order") {
		b.t.Errorf("check of %v: exit code %d, %s%s", args, code, stdout, stderr)
	}
	b.stderr.Reset()
	fmt.Fprint(&b.stderr, told)
	config, err := readConfig(file)
	if err != nil {
		b.t.Fatal(err)
	}
	return config
}

// The examples of Debian's conntrackd package, as they are installed.
func TestMigrateDebianExamples(t *testing.T) {
	const examples = "/usr/share/doc/conntrackd/examples/sync"
	if !exists(examples) {
		t.Skipf("%s is not there: apt-get install conntrackd (with its documentation)", examples)
	}
	for _, mode := range []string{"alarm", "ftfw", "notrack"} {
		t.Run(mode, func(t *testing.T) {
			b := newRig(t)
			c := b.migratedConfig(filepath.Join(examples, mode, "conntrackd.conf"), filepath.Join(examples, "keepalived.conf"))
			if told := b.stderr.String(); !strings.Contains(told, "groups 1, pins 2, left to fill in 2, not understood 0") {
				t.Errorf("told: %s", told)
			}
			got := fmt.Sprintln(c.Sync.Listen, c.Sync.Protocols, c.Sync.Ignore, c.Sync.Scope, c.Sync.Expect, len(c.Sync.Peers))
			if want := "192.168.100.100:7443 [tcp other] [192.168.0.1/32 192.168.1.1/32] all true 0\n"; got != want {
				t.Errorf("sync: %s, want %s", got, want)
			}
			got = fmt.Sprintln(c.Groups[0].Name, c.Groups[0].VRIDs, c.Pins[0].Interface, c.Pins[0].VIPs, c.Pins[1].Interface, c.Pins[1].VIPs)
			if want := "G1 [61@eth1 62@eth0] eth1 [192.168.0.100] eth0 [192.168.1.100]\n"; got != want {
				t.Errorf("groups and pins: %s, want %s", got, want)
			}
		})
	}
	b := newRig(t)
	if c := b.migratedConfig("--outside", "eth0", "--peer", "router-b=192.168.100.101",
		filepath.Join(examples, "ftfw/conntrackd.conf"), filepath.Join(examples, "keepalived.conf")); len(c.Pins) != 1 || len(c.Sync.Peers) != 1 ||
		!strings.Contains(b.stderr.String(), "left to fill in 0, not understood 0") {
		t.Errorf("pins %v, peers %v, told %s", c.Pins, c.Sync.Peers, b.stderr.String())
	}
}

func TestMigrateFilesAndIncludes(t *testing.T) {
	b := newRig(t)
	c := b.migratedConfig("--config-id", "router-a", migrateScenes+"/unicast/keepalived.conf", migrateScenes+"/unicast/conntrackd.conf")
	if len(c.Groups) != 2 || c.Groups[0].Name != "WAN" { // of conf.d
		t.Errorf("groups %v", c.Groups)
	}
	b.stdin = strings.NewReader("set high-availability vrrp group A interface eth0.2\nset high-availability vrrp group A vrid 2\nset high-availability vrrp group A address 198.51.100.2/24\n")
	if c := b.migratedConfig("-"); len(c.Pins) != 1 || c.Pins[0].VLAN.Outer != 2 {
		t.Errorf("pins of stdin: %v", c.Pins)
	}
}

func TestMigrateWritesNewFilesOnly(t *testing.T) {
	b := newRig(t)
	in := migrateScenes + "/outline/commands.txt"
	code, stdout, stderr := b.run("migrate", in)
	if code != exitDone || !strings.HasPrefix(stdout, "# Made by") || !strings.Contains(stderr, "not understood: "+in+":9: unknown setting \"hihg-availability\"") ||
		!strings.Contains(stderr, "TODO: "+in+":7: the other router's address on eth3") || !strings.Contains(stderr, "vippin: a configuration is on stdout: groups 0, pins 0") {
		t.Fatalf("exit code %d\n%s\n%s", code, stdout, stderr)
	}
	file := filepath.Join(b.dir, "out.yaml")
	code, nothing, _ := b.run("migrate", in, "-o", file)
	written, err := os.ReadFile(file)
	if code != exitDone || nothing != "" || string(written) != stdout || err != nil {
		t.Errorf("exit code %d, %q on stdout, %v; the file is\n%s", code, nothing, err, written)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := b.run("migrate", in, "-o", file); code != exitFailed || !strings.Contains(stderr, "is there already: choose another name, or replace it with --force") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	if kept, err := os.ReadFile(file); err != nil || string(kept) != "mine" {
		t.Errorf("the file was replaced by %q, %v", kept, err)
	}
	if code, _, stderr := b.run("migrate", in, "-o", file, "--force"); code != exitDone {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	if replaced, err := os.ReadFile(file); err != nil || string(replaced) != stdout {
		t.Errorf("--force left %q, %v", replaced, err)
	}
	left, err := filepath.Glob(filepath.Join(b.dir, ".vippin-migrate*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A file that cannot be read leaves no output.
func TestMigrateFaults(t *testing.T) {
	b := newRig(t)
	bad := filepath.Join(b.dir, "bad.conf")
	if err := os.WriteFile(bad, []byte("Sync {\n\tWarp 9 {\n\t}\n\tMode FTFW\n}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		args, want string
		code       int
	}{
		{bad, "DIR/bad.conf:2: unknown block \"Warp 9\"", exitFailed},
		{bad, "DIR/bad.conf:4: Mode has no block", exitFailed},
		{bad + " -o " + b.dir + "/new.yaml", "DIR/bad.conf:2:", exitFailed},
		{b.dir + "/nothing.conf", "DIR/nothing.conf: no such file", exitFailed},
		{b.dir, "is a directory", exitFailed},
		{"/dev/zero", "/dev/zero:1: the file has more than 4194304 octets", exitFailed},
		{"--peer b " + bad, `--peer "b" is not NAME=ADDRESS`, exitUsage},
		{"--peer b=c " + bad, `--peer b: "c" is neither an address nor ADDRESS:PORT`, exitUsage},
		{"--peer b=198.51.100.2 --peer b=198.51.100.3 " + bad, `--peer "b": a router is called so already`, exitUsage},
		{"--listen x " + bad, `--listen "x" is neither`, exitUsage},
		{"--listen 198.51.100.1:0 " + bad, `--listen "198.51.100.1:0" is neither`, exitUsage},
		{bad + " --force -o " + bad, "is one of the files that are read", exitUsage},
		{"--bogus", "unknown flag", exitUsage},
	}
	for _, c := range cases {
		code, stdout, stderr := b.run(append([]string{"migrate"}, strings.Fields(c.args)...)...)
		if code != c.code || stdout != "" || !strings.Contains(stderr, c.want) {
			t.Errorf("%s: exit code %d, %q, %s; want %d, %s", c.args, code, stdout, stderr, c.code, c.want)
		}
	}
	if exists(filepath.Join(b.dir, "new.yaml")) {
		t.Error("something was written")
	}
}

func TestMigrateWithoutNames(t *testing.T) {
	there := func(names ...string) func(string) bool {
		return func(name string) bool { return slices.Contains(names, name) }
	}
	if files, err := migrateFiles(nil, there(migrateDefaults[1])); err != nil || !slices.Equal(files, migrateDefaults[1:]) {
		t.Errorf("%v, %v", files, err)
	}
	if files, err := migrateFiles(nil, there()); err == nil || files != nil || !strings.Contains(err.Error(), "show configuration commands | vippin migrate -") {
		t.Errorf("%v, %v", files, err)
	}
	if files, err := migrateFiles([]string{"a"}, there(migrateDefaults...)); err != nil || !slices.Equal(files, []string{"a"}) {
		t.Errorf("%v, %v", files, err)
	}
}
