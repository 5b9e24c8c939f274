// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Of several that find no BPF file system at once one mounts it: a second one would hide
// what the first has pinned.
func TestMountOnce(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a BPF file system")
	}
	for range 20 {
		dir := filepath.Join(t.TempDir(), "bpf")
		var starters sync.WaitGroup
		for range 8 {
			starters.Go(func() {
				if err := ensureBPFFS(dir, slog.New(slog.DiscardHandler)); err != nil {
					t.Error(err)
				}
			})
		}
		starters.Wait()
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		times := strings.Count(string(mounts), " "+dir+" ")
		for range times {
			if err := unix.Unmount(dir, 0); err != nil {
				t.Fatal(err)
			}
		}
		if times != 1 {
			t.Fatalf("mounted %d times", times)
		}
	}
}
