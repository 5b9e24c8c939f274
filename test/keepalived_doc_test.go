// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"vippin/test/lab"
)

// fenced finds the parts of a document that are marked as keepalived's.
var fenced = regexp.MustCompile("(?ms)^```keepalived\n(.*?)^```$")

// Whoever copies from docs/keepalived.md has what keepalived understands, without a
// word of warning.
func TestKeepalivedTakesTheSnippets(t *testing.T) {
	t.Parallel()
	if err := lab.Root(); err != nil {
		t.Skipf("no namespace: %v", err)
	}
	doc, err := os.ReadFile("../docs/keepalived.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "vippin") // what scripts name must be there
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	paths := strings.NewReplacer("/usr/bin/vippin", program, "/run/vippin", dir)
	// The interfaces of the snippets, in a namespace that ends with the shell.
	script := "set -e\n"
	for _, ifname := range []string{"eth0.2", "eth0.101"} {
		script += fmt.Sprintf("ip link add %s type veth peer name %s-peer\n", ifname, ifname)
	}
	snippets := fenced.FindAllStringSubmatch(string(doc), -1)
	if len(snippets) < 4 {
		t.Fatalf("%d snippets", len(snippets))
	}
	for i, snippet := range snippets {
		file := filepath.Join(dir, fmt.Sprintf("keepalived-%d.conf", i))
		if err := os.WriteFile(file, []byte(paths.Replace(snippet[1])), 0o644); err != nil {
			t.Fatal(err)
		}
		script += fmt.Sprintf("keepalived -t -f %s || echo 'snippet %d: exit '$?\n", file, i)
	}
	out, err := exec.CommandContext(t.Context(), "unshare", "--net", "sh", "-c", script).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
}
