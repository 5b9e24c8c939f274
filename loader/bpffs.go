// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// DefaultBPFFS is where everything is pinned unless the configuration says
// otherwise.
const DefaultBPFFS = "/sys/fs/bpf/vippin"

// bpffsRoot is where every distribution mounts the BPF file system.
const bpffsRoot = "/sys/fs/bpf"

// linksDir holds the attachments, below the bpffs directory.
const linksDir = "links"

// ensureBPFFS makes dir, a directory on a BPF file system that only root may
// enter. Where no such file system is mounted, it mounts one: at /sys/fs/bpf if
// dir lies there, else at dir itself.
func ensureBPFFS(dir string, log *slog.Logger) error {
	onBPF, err := onBPFFS(dir)
	if err != nil {
		return err
	}
	if !onBPF {
		if err := mountBPFFS(dir, log); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, linksDir), 0o700); err != nil {
		return fmt.Errorf("make bpffs directory: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return fmt.Errorf("make bpffs directory private: %w", err)
	}
	return nil
}

// mountBPFFS does so, unless another process has done it meanwhile: a second file system
// would hide what that one has pinned.
func mountBPFFS(dir string, log *slog.Logger) error {
	at := dir
	if strings.HasPrefix(dir+"/", bpffsRoot+"/") {
		at = bpffsRoot
	} else if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make bpffs directory: %w", err)
	}
	if unlock, err := lockDir(at); err == nil { // else mounting fails, and tells why
		defer unlock()
	}
	if done, err := onBPFFS(dir); err != nil || done {
		return err
	}
	err := unix.Mount("bpf", at, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700")
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENODEV) {
		return &UnsupportedError{"a BPF file system at " + at, "mount one: mount -t bpf bpf " + at, err}
	}
	if err != nil {
		return fmt.Errorf("mount a BPF file system at %s: %w", at, err)
	}
	log.Info("mounted a BPF file system, there was none", "path", at)
	return nil
}

// onBPFFS tells whether dir, or the nearest directory above it that exists, is
// on a BPF file system.
func onBPFFS(dir string) (bool, error) {
	for {
		var stat unix.Statfs_t
		err := unix.Statfs(dir, &stat)
		if err == nil {
			return stat.Type == unix.BPF_FS_MAGIC, nil
		}
		if !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			return false, fmt.Errorf("look at the file system of %s: %w", dir, err)
		}
		dir = filepath.Dir(dir)
	}
}

// lockDir keeps other processes from changing the dataplane below dir until
// unlock is called.
func lockDir(dir string) (unlock func(), err error) {
	file, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("lock the dataplane: %w", err)
	}
	for {
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("lock the dataplane at %s: %w", dir, err)
	}
	return func() { _ = file.Close() }, nil
}

// pinner is a BPF object that can be given a name in bpffs.
type pinner interface{ Pin(path string) error }

// pinAside pins an object under a temporary name and moves it to path in one
// step, over whatever is there.
func pinAside(object pinner, path string) error {
	aside := path + "_new" // bpffs takes no dots
	if err := os.Remove(aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove what an interrupted start left: %w", err)
	}
	if err := object.Pin(aside); err != nil {
		return fmt.Errorf("pin %s: %w", path, err)
	}
	if err := os.Rename(aside, path); err != nil {
		return errors.Join(fmt.Errorf("pin %s: %w", path, err), os.Remove(aside))
	}
	return nil
}
