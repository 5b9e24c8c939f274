// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"vippin/test/vm/internal/order"
)

// mount is one file system and where it goes.
type mount struct {
	source, target, kind string
	flags                uintptr
	options              string
}

const (
	lower = "/lower"   // the host's root, read-only
	upper = "/memory"  // what the machine writes
	root  = "/newroot" // both together
)

// early is what loading modules and finding ports needs.
var early = []mount{
	{"proc", "/proc", "proc", 0, ""},
	{"sysfs", "/sys", "sysfs", 0, ""},
	{"devtmpfs", "/dev", "devtmpfs", 0, ""},
}

// host is the root to be. The host's files do not change under a machine that
// lives for a minute, so the cache may be as loose as it likes.
var host = []mount{
	{order.MountTag, lower, "9p", unix.MS_RDONLY, "trans=virtio,version=9p2000.L,msize=512000,cache=loose"},
	{"memory", upper, "tmpfs", 0, "mode=0755"},
}

// within is mounted below the new root.
var within = []mount{
	{"proc", "/proc", "proc", 0, ""},
	{"sysfs", "/sys", "sysfs", 0, ""},
	{"bpf", "/sys/fs/bpf", "bpf", 0, "mode=0700"},
	{"cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""},
	{"tracefs", "/sys/kernel/tracing", "tracefs", 0, ""},
	{"devtmpfs", "/dev", "devtmpfs", 0, ""},
	{"devpts", "/dev/pts", "devpts", 0, "mode=0620,ptmxmode=0666"},
	{"tmpfs", "/dev/shm", "tmpfs", 0, "mode=1777"},
	{"tmpfs", "/run", "tmpfs", 0, "mode=0755"},
	{"tmpfs", "/tmp", "tmpfs", 0, "mode=1777"},
}

func mountAll(below string, mounts []mount) error {
	for _, m := range mounts {
		target := filepath.Join(below, m.target)
		if err := os.MkdirAll(target, 0o755); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.kind, m.target, err)
		}
		if err := unix.Mount(m.source, target, m.kind, m.flags, m.options); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.kind, m.target, err)
		}
	}
	return nil
}

// enterHost makes the host's root, with memory above it, the root of this process.
// Kernel threads share the first process's root, so the kernel finds
// /sbin/modprobe there too.
func enterHost(todo order.Order) error {
	if err := mountAll("", host); err != nil {
		return err
	}
	for _, dir := range []string{upper + "/files", upper + "/work"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	layers := fmt.Sprintf("lowerdir=%s,upperdir=%s/files,workdir=%s/work", lower, upper, upper)
	if err := mountAll("", []mount{{"overlay", root, "overlay", 0, layers}}); err != nil {
		return err
	}
	if err := mountAll(root, within); err != nil {
		return err
	}
	if err := bind(todo.KernelModules, "/lib/modules/"+todo.Release); err != nil {
		return err
	}
	for _, dir := range todo.Keep {
		if !strings.HasPrefix(dir, "/tmp/") && !strings.HasPrefix(dir, "/run/") {
			continue
		}
		if err := bind(dir, dir); err != nil {
			return err
		}
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	// Moved, not only entered: else namespaces made inside would begin at the initramfs.
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s to /: %w", root, err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("enter %s: %w", root, err)
	}
	return unix.Sethostname([]byte("vm"))
}

// bind shows a folder of the host at a path of the new root.
func bind(from, to string) error {
	target := filepath.Join(root, to)
	if err := os.MkdirAll(target, 0o755); err != nil {
		return fmt.Errorf("show %s: %w", from, err)
	}
	if err := unix.Mount(filepath.Join(lower, from), target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("show %s at %s: %w", from, to, err)
	}
	return nil
}
