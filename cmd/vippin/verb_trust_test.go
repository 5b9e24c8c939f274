// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vippin/policy"
)

const (
	keyB = "Mc0QtSE2UeHH8dqkCLfKEH0RkO4Fn2AYzSbHNp7WTa0="
	keyC = "9vT0jRbvDYHvwrkTYWRz0Y8MuPHnNnCBaoX2Q3MABpA="
)

// step is one command line and what it must do.
type step struct {
	args   string
	code   int
	stdout string // the whole of it
	stderr string // a part of it
}

func (b *rig) steps(list []step) {
	b.t.Helper()
	for _, s := range list {
		code, stdout, stderr := b.run(strings.Fields(s.args)...)
		if code != s.code || stdout != s.stdout || !strings.Contains(stderr, s.stderr) || (s.stderr == "" && stderr != "") {
			b.t.Errorf("%s: exit code %d, stdout %q, stderr %q", s.args, code, stdout, stderr)
		}
	}
}

func TestKeygen(t *testing.T) {
	b := newRig(t)
	code, first, stderr := b.run("keygen")
	if code != exitDone || stderr != "vippin: made DIR/state/node.key\n" {
		t.Fatalf("exit code %d, %q", code, stderr)
	}
	if _, err := policy.ParsePublicKey(strings.TrimSuffix(first, "\n")); err != nil {
		t.Error(err)
	}
	b.steps([]step{
		{"keygen", exitDone, first, ""},
		{"keygen --state-dir " + filepath.Join(b.dir, "state"), exitDone, first, ""},
	})
	code, second, _ := b.run("keygen", "--state-dir", filepath.Join(b.dir, "other"))
	if code != exitDone || second == first {
		t.Errorf("exit code %d, %q twice", code, second)
	}
	if err := os.Chmod(filepath.Join(b.dir, "state", "node.key"), 0o640); err != nil {
		t.Fatal(err)
	}
	b.steps([]step{{"keygen", exitFailed, "", `"chmod 600 DIR/state/node.key"`}})
}

// TestKeyGoesIntoTheRightPlace: a configuration that cannot be read does not
// mean the default state_dir.
func TestKeyGoesIntoTheRightPlace(t *testing.T) {
	b := newRig(t)
	b.configure("pins: [")
	b.steps([]step{
		{"keygen", exitFailed, "", "Give --state-dir, or mend the configuration"},
		{"trust router-b " + keyB, exitFailed, "", "Give --state-dir"},
		{"trust --state-dir " + b.dir + "/x router-b " + keyB, exitDone, "", ""},
		{"trust ls", exitFailed, "", "Give --state-dir"},
	})
}

func TestTrust(t *testing.T) {
	b := newRig(t)
	b.steps([]step{
		{"trust ls", exitDone, "nobody is trusted\n", ""},
		{"trust ls -j", exitDone, "[]\n", ""},
		{"trust rm router-b", exitFailed, "", `no key is noted for "router-b"`},
		{"trust router-b " + keyB, exitDone, "", ""},
		{"trust router-b " + keyB, exitDone, "", ""},
		{"trust router-c " + keyB, exitFailed, "", "router-b has that key"},
		{"trust router-c " + keyC, exitDone, "", ""},
		{"trust ls", exitDone, "NAME      KEY                                           BY\n" +
			"router-b  " + keyB + "  trust\nrouter-c  " + keyC + "  trust\n", ""},
		{"trust router-c " + keyC[1:], exitUsage, "", `ending in "=", that "vippin keygen" prints`},
		{"trust router-c\x00 " + keyC, exitUsage, "", "no name of a peer"},
		{"trust rm router-c", exitDone, "", ""},
		{"trust rm router-c", exitFailed, "", "no key is noted"},
		{"trust ls --state-dir " + b.dir + "/other", exitDone, "nobody is trusted\n", ""},
	})
	_, own, _ := b.run("keygen")
	b.steps([]step{{"trust router-d " + own, exitFailed, "", "this router's own key"}})
	keys, err := trustStore{dir: filepath.Join(b.dir, "state")}.Load()
	if err != nil || len(keys) != 1 || keys["router-b"].String() != keyB {
		t.Errorf("%v, %v", keys, err)
	}
}

// TestConfigurationIsTrustedFirst, and says so.
func TestConfigurationIsTrustedFirst(t *testing.T) {
	b := newRig(t)
	b.configure(testConfig + "sync: {listen: \"198.51.100.129:7443\", peers: [{name: router-b, address: \"198.51.100.130:7443\", key: " + keyB + "}]}\n")
	b.steps([]step{
		{"trust router-b " + keyC, exitDone, "", "the configuration has another key for router-b, and that one counts"},
		{"trust ls", exitDone, "NAME      KEY                                           BY\nrouter-b  " + keyB + "  config\n", ""},
		{"trust rm router-b", exitDone, "", "the configuration has a key for router-b, too"},
	})
	_, stdout, _ := b.run("trust", "ls", "-j")
	var rows []trustedKey
	if err := json.Unmarshal([]byte(stdout), &rows); err != nil || len(rows) != 1 || rows[0] != (trustedKey{"router-b", keyB, "config"}) {
		t.Errorf("%v, %v", rows, err)
	}
}

func TestPeerNames(t *testing.T) {
	for name, good := range map[string]bool{
		"router-b": true, "ü": true, strings.Repeat("x", 64): true, "a/b": true,
		"": false, strings.Repeat("x", 65): false, "a b": false, "a\nb": false, "a\x1b[2J": false, "\xff": false,
	} {
		if err := checkPeerName(name); (err == nil) != good {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestOctets(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0", 1023: "1023", 1024: "1.0 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1.0 MiB", 1 << 20: "1.0 MiB", 5 << 30: "5.0 GiB", 1<<64 - 1: "16.0 EiB",
	} {
		if got := octets(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
