// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"testing"
)

// files is a directory in memory; patterns are path.Match's.
type files map[string]string

func (f files) include(pattern, from string) (sources []Source, err error) {
	if strings.HasPrefix(pattern, "/secret") {
		return nil, errors.New("permission denied")
	}
	pattern = path.Join(path.Dir(from), pattern)
	for _, name := range []string{"sub/a.conf", "sub/b.conf", "loop.conf", "vars.conf"} {
		if ok, err := path.Match(pattern, name); ok && err == nil && f[name] != "" {
			sources = append(sources, Source{Name: name, Data: []byte(f[name])})
		}
	}
	return sources, nil
}

func TestIncludedFiles(t *testing.T) {
	dir := files{
		"sub/a.conf": "include b.conf\n" + instanceText("A", "$IF", 10, "198.51.100.2"),
		"sub/b.conf": instanceText("B", "${IF}9", 11, "203.0.113.2"),
		"loop.conf":  "include loop.conf\n",
		"vars.conf":  "$IF=eth3\n",
	}
	o := Options{Include: dir.include}
	cfg, r := migrated(t, "includea vars.conf\ninclude sub/a.conf\n", o)
	wantLists(t, "groups", groupsOf(cfg), []string{"B [11@eth39]", "A [10@eth3]"})
	if len(r.Warnings) > 0 {
		t.Errorf("warnings %q", r.Warnings)
	}
	_, r = migrated(t, "include nothing/*.conf\ninclude {a,b}.conf\ninclude\nvrrp_instance A {\n}\n", o)
	wantLists(t, "warnings", r.Warnings, []string{
		"in:1: include nothing/*.conf: there is no such file",
		"in:2: include {a,b}.conf is not followed: name these files on the command line, too",
		"in:3: include needs one file name",
	})
	_, r = migrated(t, "include sub/*.conf\n", Options{})
	wantLists(t, "warnings", r.Warnings, []string{"in:1: include sub/*.conf is not followed: name these files on the command line, too"})
	for text, want := range map[string]string{
		"include loop.conf\n":   "loop.conf:1: include loop.conf: more than 16 files include each other",
		"include /secret/x\n":   "in:1: include /secret/x: permission denied: correct the name, or take the line out of a copy",
		"include sub/b.conf\n{": "in:2: \"{\" without a word before it",
	} {
		if _, err := Run([]Source{{"in", []byte(text)}}, Options{Node: "x", Include: dir.include}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	// Many files that include many: bounded.
	dir["loop.conf"] = "include sub/*.conf\n"
	dir["sub/a.conf"] = "include b.conf\n"
	dir["sub/b.conf"] = strings.Repeat("include ../vars.conf\n", 300)
	if _, err := Run([]Source{{"in", []byte("include loop.conf\n")}}, Options{Include: dir.include}); err == nil || !strings.Contains(err.Error(), "more than 200 files, or 4194304 octets, are included") {
		t.Errorf("%v", err)
	}
}

func TestLinesForSomeRouters(t *testing.T) {
	text := "$IF=eth0.${TAG}\n$TAG=2\nvrrp_instance A {\n\tinterface $IF\n\t@router-a virtual_router_id 10\n\t@^router-a virtual_router_id 11\n" +
		"\t@router-b\tpriority 7\n\tvirtual_ipaddress {\n\t\t198.51.100.2 # $IF\n\t}\n}\n$TAG=3\nvrrp_instance $B {\n}\n"
	cfg, r := migrated(t, text, Options{Node: "router-a.example.net"})
	wantLists(t, "groups", groupsOf(cfg), []string{"A [10@eth0.2]", "$B []"})
	if !strings.Contains(string(r.YAML), "@^router-a (6), @router-b (7): for other routers") {
		t.Errorf("what was left out is not named:\n%s", r.YAML)
	}
	cfg, _ = migrated(t, text, Options{Node: "router-a", ConfigID: "other"})
	wantLists(t, "groups with another config-id", groupsOf(cfg), []string{"A [11@eth0.2]", "$B []"})
}

func TestParametersThatAreNot(t *testing.T) {
	_, r := migrated(t, "vrrp_instance A {\n\tinterface ${NOWHERE}\n\tvirtual_router_id 10\n}\n", Options{})
	wantLists(t, "warnings", r.Warnings, []string{`in:2: interface "${NOWHERE}" is no name of an interface`})
}

func TestQuotesAndComments(t *testing.T) {
	cfg, r := migrated(t, "! one\nvrrp_instance \"A\" # two { \n{\n\tinterface 'eth0.2'! three\n\tvirtual_router_id 10\n"+
		"\tnotify_master \"/bin/sh -c 'echo { # \\\"x\\\" }'\" root\n\tvirtual_ipaddress { 198.51.100.2/24 }\n}\n", Options{})
	wantLists(t, "pins", pinsOf(cfg), []string{"2@eth0.2 [198.51.100.2] A"})
	if len(r.Warnings) > 0 || !strings.Contains(string(r.YAML), `notify_master /bin/sh -c 'echo { # "x" }' root (6)`) {
		t.Errorf("warnings %q\n%s", r.Warnings, r.YAML)
	}
}

// Values that cannot be are named with their lines, and nothing is made of them.
func TestValuesThatCannotBe(t *testing.T) {
	for setting, want := range map[string]string{
		"interface":                                  "interface needs one value",
		"interface eth0/1":                           `interface "eth0/1" is no name of an interface`,
		"interface averyverylonginterface":           "is no name of an interface",
		"virtual_router_id 256":                      `virtual_router_id "256" is not 1 to 255`,
		"virtual_router_id 0":                        "is not 1 to 255",
		"unicast_src_ip here":                        `unicast_src_ip "here" is no address`,
		"unicast_peer { there }":                     `unicast_peer "there" is no address`,
		"virtual_ipaddress { 198.51.100.300 }":       `"198.51.100.300" of VRRP instance A is no virtual address`,
		"virtual_ipaddress { 198.51.100.2/33 }":      "is no virtual address",
		"virtual_ipaddress { 224.0.0.18 }":           "is no virtual address",
		"virtual_ipaddress { 127.0.0.1 }":            "is no virtual address",
		"virtual_ipaddress { ::ffff:198.51.100.2 }":  "is no virtual address",
		"virtual_ipaddress { 198.51.100.2 dev }":     "dev in virtual_ipaddress has no value",
		"virtual_ipaddress { 198.51.100.2 dev a/b }": `dev "a/b" is no name of an interface`,
		"virtual_ipaddress { 198.51.100.2 shiny }":   `unknown option "shiny" of a virtual address of A`,
		"shiny new":        `unknown setting "shiny new" in vrrp_instance A`,
		"auth_pass secret": `unknown setting "auth_pass" in vrrp_instance A`,
	} {
		_, r := migrated(t, fmt.Sprintf("vrrp_instance A {\n%s\n}\n", setting), Options{})
		if len(r.Warnings) != 1 || !strings.HasPrefix(r.Warnings[0], "in:2: ") || !strings.Contains(r.Warnings[0], want) ||
			!strings.Contains(unwrapped(r), r.Warnings[0]) {
			t.Errorf("%s: %q, want %s\n%s", setting, r.Warnings, want, r.YAML)
		}
	}
}

// Scripts of conntrackd's are to go, others stay.
func TestNotifyScripts(t *testing.T) {
	for script, gone := range map[string]bool{
		`"/etc/conntrackd/primary-backup.sh primary"`:                true,
		`"/usr/libexec/vyos/vyos-vrrp-conntracksync.sh master CORE"`: true,
		`"/usr/sbin/conntrackd -c"`:                                  true,
		`/usr/local/bin/tell`:                                        false,
	} {
		_, r := migrated(t, "vrrp_instance A {\n\tnotify_master "+script+"\n}\n", Options{})
		if strings.Contains(unwrapped(r), "take it out on both routers") != gone {
			t.Errorf("%s:\n%s", script, r.YAML)
		}
	}
	_, r := migrated(t, "set high-availability vrrp sync-group A transition-script master '/x/conntrackd-master'\n", Options{})
	if !strings.Contains(unwrapped(r), "take it out on both routers") {
		t.Errorf("%s", r.YAML)
	}
}
