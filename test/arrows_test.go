// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// arrow bans an import, with the reason that the failing test gives.
type arrow struct {
	from   string // package path prefix, relative to the module
	to     string // import path prefix that from must not have
	except string // import path prefix that it may have all the same
	reason string
}

var banned = []arrow{
	{"bpf", "vippin/", "", "bpf is what runs in the kernel: it knows nothing of those who load it"},
	{"policy", "vippin/", "vippin/policy", "policy decides: it must not reach for what touches the kernel"},
	{"policy/vrrp", "vippin/policy/natsync", "", "the tracker and replication meet in cmd alone"},
	{"policy/natsync", "vippin/policy/vrrp", "", "the tracker and replication meet in cmd alone"},
	{"policy/doctor", "vippin/policy/vrrp", "", "doctor judges what others have found out: facts come in as arguments"},
	{"policy/doctor", "vippin/policy/natsync", "", "doctor judges what others have found out: facts come in as arguments"},
	{"policy/flight", "vippin/policy/vrrp", "", "the recorder is told what happened: it decides nothing about roles"},
	{"policy/flight", "vippin/policy/natsync", "", "the recorder is told what happened: it decides nothing about flows"},
	{"policy/parity", "vippin/policy/vrrp", "", "parity compares what others have found out: facts come in as arguments"},
	{"policy/parity", "vippin/policy/natsync", "", "parity compares what others have found out: facts come in as arguments"},
	{"policy", "github.com/google/nftables", "", "policy does no I/O: facts come in as arguments"},
	{"policy", "github.com/cilium/ebpf", "", "policy does no I/O: facts come in as arguments"},
	{"policy", "github.com/vishvananda/netlink", "", "policy does no I/O: facts come in as arguments"},
	{"policy", "github.com/mdlayher/netlink", "", "policy does no I/O: facts come in as arguments"},
	{"policy", "github.com/florianl/go-nfqueue", "", "policy does no I/O: facts come in as arguments"},
	{"policy", "golang.org/x/sys", "", "policy does no I/O: facts come in as arguments"},
	{"policy", "os/exec", "", "policy does no I/O: facts come in as arguments"},
	{"loader", "vippin/cmd", "", "loader is wired by cmd, not the other way round"},
	{"loader", "vippin/policy/", "", "loader takes policy's types, not its state machines"},
	{"loader", "vippin/test", "", "what ships does not depend on its tests"},
	{"cmd", "vippin/bpf", "", "nobody but loader imports bpf: map layouts stay in one place"},
	{"cmd", "vippin/test", "", "what ships does not depend on its tests"},
}

type goPackage struct {
	ImportPath string
	Imports    []string
}

func TestImportArrows(t *testing.T) {
	packages := listPackages(t)
	if len(packages) < 5 {
		t.Fatalf("go list found only %d packages", len(packages))
	}
	for _, pkg := range packages {
		for _, imported := range pkg.Imports {
			if reason := offends(banned, pkg.ImportPath, imported); reason != "" {
				t.Errorf("%s imports %s: %s", pkg.ImportPath, imported, reason)
			}
		}
	}
}

func TestArrowsCatchOffenders(t *testing.T) {
	for _, c := range [][2]string{
		{"vippin/bpf", "vippin/policy"},
		{"vippin/policy/vrrp", "vippin/policy/natsync"},
		{"vippin/policy", "github.com/cilium/ebpf/link"},
		{"vippin/policy/vrrp", "golang.org/x/sys/unix"},
		{"vippin/loader/conntrack", "vippin/cmd/vippin"},
		{"vippin/cmd/vippin", "vippin/bpf"},
	} {
		if offends(banned, c[0], c[1]) == "" {
			t.Errorf("%s may import %s", c[0], c[1])
		}
	}
	if reason := offends(banned, "vippin/policy/vrrp", "vippin/policy"); reason != "" {
		t.Errorf("policy/vrrp may not import policy: %s", reason)
	}
}

// offends returns why from must not import to, or "".
func offends(banned []arrow, from, to string) string {
	for _, b := range banned {
		if under(from, "vippin/"+b.from) && under(to, b.to) && (b.except == "" || to != b.except) {
			return b.reason
		}
	}
	return ""
}

// under tells whether a path is a prefix or below it.
func under(path, prefix string) bool {
	return path == prefix || strings.HasPrefix(path, strings.TrimSuffix(prefix, "/")+"/")
}

func listPackages(t *testing.T) []goPackage {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "vippin/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var packages []goPackage
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var pkg goPackage
		if err := d.Decode(&pkg); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatalf("read go list: %v", err)
		}
		packages = append(packages, pkg)
	}
}
