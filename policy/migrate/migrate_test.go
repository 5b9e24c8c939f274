// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vippin/policy"
)

var update = flag.Bool("update", false, "write testdata/*/vippin.yaml anew")

// scenes are the directories of testdata with the files that are read of each.
var scenes = map[string][]string{
	"ftfw":    {"conntrackd.conf", "keepalived.conf"},
	"unicast": {"conntrackd.conf", "keepalived.conf"},
	"trunk":   {"commands.txt"},
	"outline": {"commands.txt"},
}

// sourcesOf reads the files of a scene.
func sourcesOf(t testing.TB, scene string) (sources []Source) {
	t.Helper()
	for _, name := range scenes[scene] {
		data, err := os.ReadFile(filepath.Join("testdata", scene, name))
		if err != nil {
			t.Fatal(err)
		}
		sources = append(sources, Source{Name: name, Data: data})
	}
	return sources
}

// optionsOf is a router-a whose keepalived.conf stands in a directory.
func optionsOf(dir string) Options {
	return Options{Node: "router-a.example.net", Include: func(pattern, from string) (sources []Source, err error) {
		files, err := filepath.Glob(filepath.Join(dir, filepath.Dir(from), pattern))
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			name, err := filepath.Rel(dir, file)
			if err != nil {
				return nil, err
			}
			sources = append(sources, Source{Name: name, Data: data})
		}
		return sources, err
	}}
}

// migrated runs one source without a name that matters.
func migrated(t testing.TB, text string, o Options) (*policy.Config, *Result) {
	t.Helper()
	if o.Node == "" {
		o.Node = "router-a"
	}
	r, err := Run([]Source{{Name: "in", Data: []byte(text)}}, o)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	cfg, err := policy.ParseConfig(r.YAML, "out", o.Node)
	if err != nil {
		t.Fatalf("%v\n%s", err, r.YAML)
	}
	return cfg, r
}

func TestScenes(t *testing.T) {
	for scene := range scenes {
		t.Run(scene, func(t *testing.T) {
			r, err := Run(sourcesOf(t, scene), optionsOf(filepath.Join("testdata", scene)))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := policy.ParseConfig(r.YAML, "vippin.yaml", "router-a"); err != nil {
				t.Errorf("vippin check would say:\n%v", err)
			}
			if bytes.Contains(r.YAML, []byte("s3cr3t")) {
				t.Error("a password is in the output")
			}
			golden := filepath.Join("testdata", scene, "vippin.yaml")
			if *update {
				if err := os.WriteFile(golden, r.YAML, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatalf("%v (run go test -update)", err)
			}
			if !bytes.Equal(want, r.YAML) {
				t.Errorf("%s: got\n%s\nwant\n%s", golden, r.YAML, want)
			}
		})
	}
}

// Whatever a line says, the result is another one without it: nothing is dropped
// silently. Lines are emptied, so that the numbers of the others stay.
func TestEveryLineCounts(t *testing.T) {
	for scene := range scenes {
		sources, o := sourcesOf(t, scene), optionsOf(filepath.Join("testdata", scene))
		whole, err := Run(sources, o)
		if err != nil {
			t.Fatal(err)
		}
		lines := 0
		for i, src := range sources {
			for n, line := range bytes.Split(src.Data, []byte("\n")) {
				bare := strings.TrimSpace(string(line))
				if bare == "" || strings.ContainsAny(bare[:1], "#!{}") {
					continue
				}
				lines++
				less := append([]Source{}, sources...)
				less[i].Data = withoutLine(src.Data, n)
				r, err := Run(less, o)
				if err == nil && bytes.Equal(r.YAML, whole.YAML) && !within[bare] {
					t.Errorf("%s:%d: %s: it makes no difference", src.Name, n+1, bare)
				}
			}
		}
		if lines < 6 {
			t.Errorf("%s: only %d lines were tried", scene, lines)
		}
	}
}

// within are lines of what is named as a whole, and lines that say nothing that
// is of use.
var within = map[string]bool{
	"Options {": true,
	// blocks that are passed over
	"script \"/usr/local/bin/uplink -q\"": true, "interval 2": true, "weight -20": true,
	"auth_type PASS": true, "auth_pass s3cr3t": true,
	"QueueNum 5": true, "Policy ftp { ExpectMax 2 }": true,
	// a group that is switched off
	"set high-availability vrrp group LAB address 198.18.102.1/24": true,
	"set high-availability vrrp group LAB interface 'eth0.102'":    true,
	"set high-availability vrrp group LAB vrid '102'":              true,
	// an interface's own address, where another line or nobody names it
	"set interfaces ethernet eth0 vif 2 address '198.51.100.10/25'":             true,
	"set interfaces ethernet eth0 vif-s 100 vif-c 20 address '203.0.113.10/26'": true,
	"set interfaces ethernet eth5 address '198.51.100.129/30'":                  true,
	"set service conntrack-sync listen-address '198.51.100.129'":                true,
	// what people say to themselves, and what is so anyway
	"set nat source rule 30 description 'everything else'": true,
	"set nat source rule 30 log":                           true,
	"set nat source rule 30 protocol 'all'":                true,
}

func withoutLine(data []byte, n int) []byte {
	lines := bytes.Split(bytes.Clone(data), []byte("\n"))
	lines[n] = nil
	return bytes.Join(lines, []byte("\n"))
}

func TestFaults(t *testing.T) {
	cases := []struct {
		name, text, want string
	}{
		{"empty", "", "in:1: there is nothing in the file"},
		{"comments alone", "# one\n! two\n", "in:1: there is nothing in the file"},
		{"another language", "\n\nGeneral: true\n", "in:3: this is neither"},
		{"config.boot", "interfaces {\n    ethernet eth0 {\n", "in:1: this is VyOS's config.boot: give the output of \"show configuration commands\""},
		{"zeros", "Sync {\n\x00\n}\n", "in:2: this is no text (UTF-8)"},
		{"another encoding", "Sync {\n}\n# \xfc\n", "in:3: this is no text (UTF-8)"},
		{"huge", "Sync {}\n" + strings.Repeat("# filler\n", SizeMax/9), "in:1: the file has more than 4194304 octets"},
		{"open block", "Sync {\n\tMode FTFW {\n}\n", "in:1: the block \"Sync\" has no end"},
		{"closed twice", "Sync {\n}\n}\n", "in:3: \"}\" without a block"},
		{"nameless block", "{\n}\nSync {\n}\n", "in:1: \"{\" without a word before it"},
		{"nameless block inside", "Sync {\n\tUDP { }\n\t{ }\n}\n", "in:3: \"{\" without a word before it"},
		{"depth", "Sync " + strings.Repeat("{ a ", 40), "in:1: more than 16 blocks"},
		{"no value", "General {\n\tHashSize\n}\n", "in:2: HashSize has no value: give it one"},
		{"no block", "Sync {\n\tMode FTFW\n}\n", "in:2: Mode has no block"},
		{"block after a value", "General {\n\tHashSize 5 { }\n}\n", "in:2: HashSize takes no block"},
		{"unknown block", "Sync {\n\tCarrier pigeon {\n\t}\n}\n", "in:2: unknown block \"Carrier pigeon\": it is none of conntrackd 1.4's; correct it, or take it out of a copy"},
		{"filter without policy", "General {\n\tFilter {\n\t\tProtocol {\n\t\t\tTCP\n\t\t}\n\t}\n}\n", "in:3: Protocol \"\": write Accept or Ignore"},
		{"keepalived: unknown block", "vrrp_instance A {\n\tpigeon {\n\t}\n}\n", "in:2: unknown block \"pigeon\" in vrrp_instance A: correct it, or take it out of a copy"},
		{"keepalived: unknown block at the top", "global_defs {\n}\npigeon B {\n}\n", "in:3: unknown block \"pigeon B\""},
		{"keepalived: nameless instance", "vrrp_instance {\n}\n", "in:1: vrrp_instance needs one name"},
		{"keepalived: nameless group", "vrrp_sync_group a b {\n}\n", "in:1: vrrp_sync_group needs one name"},
		{"keepalived: no block", "vrrp_instance A {\n\tvirtual_ipaddress 198.51.100.2\n}\n", "in:2: virtual_ipaddress 198.51.100.2 has no block"},
		{"keepalived: a block too many", "vrrp_instance A {\n\tinterface eth0 { }\n}\n", "in:2: interface eth0 takes no block"},
		{"keepalived: open quote", "vrrp_script A {\n\tscript \"/bin/true\n}\n", "in:2: a quote begins and does not end"},
		{"keepalived: definition of several lines", "$A= \\\n  x \\\n", "in:1: $A is defined over several lines, which is not read: write out"},
		{"keepalived: sequence", "vrrp_instance A {\n}\n~SEQ(I, 1, 2) $B\n", "in:3: sequences (~SEQ, ~LST) are not read: write out"},
		{"keepalived: runaway parameter", "$A=${A}${A} x\nvrrp_instance ${A} {\n}\n", "in:2: the line has more than 4096 octets with its parameters"},
		{"vyos: open quote", "set system host-name 'a\n", "in:1: a quote begins and does not end"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r, err := Run([]Source{{Name: "in", Data: []byte(c.text)}}, Options{Node: "router-a"})
			var faults policy.ConfigErrors
			if r != nil || !errors.As(err, &faults) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// One run names the faults of all files.
func TestFaultsOfAllFiles(t *testing.T) {
	_, err := Run([]Source{{"a", []byte("Sync {\n\tWarp { }\n\tMode FTFW\n}\n")}, {"b", []byte("vrrp_instance {\n}\n")}}, Options{Node: "x"})
	for _, want := range []string{"a:2:", "a:3:", "b:1:"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %s in %v", want, err)
		}
	}
}

// What others wrote stays within the comment that quotes it.
func TestNamesDoNotLeaveComments(t *testing.T) {
	for _, evil := range []string{"a\u2028pins: [{vlan: 1}]", "a\u0085run_dir: x", "a\u2029b", "'\x1b[31m'", "\u202eabc"} {
		_, r := migrated(t, "vrrp_instance \""+evil+"\" {\n\tinterface eth0\n\tvirtual_router_id 1\n\t\""+evil+"\" 1\n\tvirtual_ipaddress {\n\t198.51.100.2\n\t}\n}\n", Options{})
		for line := range strings.Lines(string(r.YAML)) {
			if strings.ContainsAny(line, "\u2028\u2029\u0085\x1b\u202e") {
				t.Errorf("%q", line)
			}
		}
	}
}
