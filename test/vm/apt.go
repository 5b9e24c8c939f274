// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// keyring signs Debian 12's releases; every Debian has it.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// apt is an apt of our own: its sources, lists and archives are in dir, all else
// (proxies, certificates) is the machine's.
type apt struct{ dir string }

// run calls a program of apt's and returns what it prints.
func (a apt) run(ctx context.Context, program string, args ...string) (string, error) {
	options := []string{
		"-o", "Dir::Etc::sourcelist=" + filepath.Join(a.dir, "sources.list"),
		"-o", "Dir::Etc::sourceparts=/dev/null",
		"-o", "Dir::State::lists=" + filepath.Join(a.dir, "lists"),
		"-o", "Dir::Cache=" + filepath.Join(a.dir, "cache"),
		"-o", "APT::Sandbox::User=",
		"-o", "Acquire::Languages=none",
		"-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
	}
	return output(ctx, a.dir, program, append(options, args...)...)
}

// prepare writes the sources and fetches the lists.
func (a apt) prepare(ctx context.Context) error {
	sources, err := debianSources(ctx)
	if err != nil {
		return err
	}
	for _, dir := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(a.dir, dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(a.dir, "sources.list"), []byte(sources), 0o644); err != nil {
		return err
	}
	_, err = a.run(ctx, "apt-get", "-q", "update")
	return err
}

// debianSources derives Debian 12's sources from the archives that this
// machine's apt knows.
func debianSources(ctx context.Context) (string, error) {
	listed, err := output(ctx, "", "apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages")
	if err != nil {
		return "", err
	}
	suites := map[string][]string{
		"/debian":          {"bookworm", "bookworm-backports"},
		"/debian-security": {"bookworm-security"},
	}
	var lines []string
	for uri := range strings.FieldsSeq(listed) {
		for end, names := range suites {
			if !strings.HasSuffix(strings.TrimSuffix(uri, "/"), end) {
				continue
			}
			for _, name := range names {
				lines = append(lines, fmt.Sprintf("deb [signed-by=%s] %s %s main", keyring, uri, name))
			}
			delete(suites, end)
		}
	}
	if len(suites["/debian"]) > 0 {
		return "", errors.New("find a Debian archive among apt's sources: none ends in /debian; " +
			"add one, or unpack a kernel package into the cache by hand (see package vm)")
	}
	return strings.Join(lines, "\n") + "\n", nil
}

// metaPackages pull in the newest kernel of a series; which series the first one
// means depends on the suite.
func metaPackages(series string) []string {
	return []string{"linux-image-amd64", "linux-image-" + series + "-amd64"}
}

// newest names the package and its version that hold the series' newest kernel.
func (a apt) newest(ctx context.Context, series string) (name, version string, err error) {
	var last error
	for _, meta := range metaPackages(series) {
		shown, err := a.run(ctx, "apt-cache", "show", meta) // newest version first
		if err != nil {
			last = err
			continue
		}
		if name, version = kernelDependency(shown, series); name != "" {
			return name, version, nil
		}
	}
	return "", "", fmt.Errorf("find a package for kernel %s: no version of %v depends on one (%v)",
		series, metaPackages(series), last)
}

// kernelDependency finds linux-image-SERIES.… in the output of apt-cache show.
func kernelDependency(shown, series string) (name, version string) {
	found := regexp.MustCompile(`(?m)^Depends:.*?\b(linux-image-` + regexp.QuoteMeta(series) +
		`\.[0-9a-z.+-]*-amd64) \(= ([^)]+)\)`).FindStringSubmatch(shown)
	if found == nil {
		return "", ""
	}
	return found[1], found[2]
}

// output runs a program and returns its standard output; its standard error
// becomes part of the error.
func output(ctx context.Context, dir, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("run %s: %w: %s", program, err, bytes.TrimSpace(complaint.Bytes()))
	}
	return out.String(), nil
}
