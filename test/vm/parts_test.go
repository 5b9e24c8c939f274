// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vippin/test/vm/internal/order"
)

func TestModuleOrder(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"modules.dep": "kernel/a-top.ko.xz: kernel/mid.ko kernel/low.ko\n" +
			"kernel/mid.ko: kernel/low.ko\nkernel/low.ko:\nkernel/other.ko: kernel/built.ko\n",
		"modules.builtin": "kernel/built.ko\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	index, err := readModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	got, err := index.order([]string{"a-top", "built", "other", "mid"})
	if want := []string{"low", "mid", "a_top", "other"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("order %v, %v; want %v", got, err, want)
	}
	if _, err := index.order([]string{"absent"}); err == nil || !strings.Contains(err.Error(), "absent") {
		t.Errorf("a module that is nowhere: error %v; want one that names it", err)
	}
}

func TestKernelDependency(t *testing.T) {
	const shown = `Package: linux-image-amd64
Version: 6.12.95-1~bpo12+1
Depends: linux-image-6.12.95+deb12-amd64 (= 6.12.95-1~bpo12+1)

Package: linux-image-amd64
Version: 6.1.192-2
Depends: something, linux-image-6.1.0-56-amd64 (= 6.1.192-2)

Package: linux-image-amd64
Depends: linux-image-6.1.0-50-amd64 (= 6.1.176-1)
`
	for _, c := range []struct{ series, name, version string }{
		{"6.1", "linux-image-6.1.0-56-amd64", "6.1.192-2"}, // not 6.12, and the newest
		{"6.12", "linux-image-6.12.95+deb12-amd64", "6.12.95-1~bpo12+1"},
		{"5.10", "", ""},
	} {
		if name, version := kernelDependency(shown, c.series); name != c.name || version != c.version {
			t.Errorf("%s: %q %q, want %q %q", c.series, name, version, c.name, c.version)
		}
	}
}

// TestCpio has the archive read by another program than the one that wrote it.
func TestCpio(t *testing.T) {
	unpack, err := exec.LookPath("cpio")
	if err != nil {
		t.Skip("cpio is missing: apt-get install cpio")
	}
	var archive cpio
	archive.dir("/modules")
	archive.file("/modules/odd.ko", 0o644, []byte("odd length"))
	archive.file("/init", 0o755, []byte("four"))
	dir := t.TempDir()
	cmd := exec.Command(unpack, "-i", "--quiet")
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(archive.end())
	if said, err := cmd.CombinedOutput(); err != nil || len(said) > 0 {
		t.Fatalf("cpio: %v: %s", err, said)
	}
	for name, want := range map[string]string{"modules/odd.ko": "odd length", "init": "four"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s holds %q, %v; want %q", name, got, err, want)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "init")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("init: %v, %v; want an executable", info, err)
	}
}

func TestReporting(t *testing.T) {
	r := reporting{start: time.Now().Add(-time.Second)}
	for _, piece := range []string{`{"event":"st`, "arted\"}\n{\"event\":", "\"exited\",\"exit_code\":3}\n"} {
		if _, err := r.Write([]byte(piece)); err != nil {
			t.Fatal(err)
		}
	}
	if r.last != (order.Report{Event: order.Exited, ExitCode: 3}) || r.boot < time.Second {
		t.Errorf("last report %+v, boot %v", r.last, r.boot)
	}
	if _, err := r.Write([]byte("not JSON\n")); err == nil {
		t.Error("a report that is not JSON is taken")
	}
}

// TestFastClock: a machine that has been up for longer, by its own clock, than it has
// been there is given up.
func TestFastClock(t *testing.T) {
	for name, c := range map[string]struct {
		uptime time.Duration
		fast   bool
	}{
		"its clock began late": {20 * time.Second, false},
		"its clock is right":   {30 * time.Second, false},
		"its clock is fast":    {102 * time.Second, true},
	} {
		var given error
		reports := reporting{start: time.Now().Add(-30 * time.Second), giveUp: func(err error) { given = err }}
		if err := json.NewEncoder(&reports).Encode(order.Report{Event: order.Started, Uptime: c.uptime}); err != nil {
			t.Fatal(err)
		}
		if errors.Is(given, errFastClock) != c.fast {
			t.Errorf("%s: %v", name, given)
		}
	}
}
