// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Series are the kernels that vippin is tried with here, oldest first.
var Series = []string{"6.1", "6.12"}

// Kernel is an unpacked kernel package.
type Kernel struct {
	Series  string // "6.1"
	Package string // Debian's package and version, "linux-image-6.1.0-50-amd64 6.1.176-1"
	Release string // uname -r, "6.1.0-50-amd64"
	Image   string // path of vmlinuz
	Modules string // path of lib/modules/RELEASE
}

// Checkout is the root of the module, found upwards from the working directory.
func Checkout() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("find the checkout: no go.mod in the working directory or above; run it inside the checkout")
		}
	}
}

// CacheDir is where kernels and what was built for the machine are kept:
// VIPPIN_VM_CACHE, or .cache/vm in the checkout. It is made if it is missing.
func CacheDir() (string, error) {
	dir := os.Getenv("VIPPIN_VM_CACHE")
	if dir == "" {
		checkout, err := Checkout()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(checkout, ".cache", "vm")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return dir, os.MkdirAll(dir, 0o755)
}

// Fetch returns the kernel of a series such as "6.1", out of the cache or else
// downloaded and unpacked (a minute, 70 to 110 MB to load). Processes that want
// the same one wait for each other.
func Fetch(ctx context.Context, series string) (Kernel, error) {
	cache, err := CacheDir()
	if err != nil {
		return Kernel{}, err
	}
	unlock, err := lockDir(cache)
	if err != nil {
		return Kernel{}, err
	}
	defer unlock()
	place := filepath.Join(cache, series)
	if _, err := os.Stat(place); errors.Is(err, fs.ErrNotExist) {
		if err := download(ctx, cache, series); err != nil {
			return Kernel{}, fmt.Errorf("fetch kernel %s: %w", series, err)
		}
	}
	kernel, err := unpacked(place)
	if err != nil {
		return Kernel{}, fmt.Errorf("%w; remove %s to have it fetched again", err, place)
	}
	kernel.Series = series
	return kernel, nil
}

// download puts a kernel into the cache, whole or not at all.
func download(ctx context.Context, cache, series string) error {
	aside, err := os.MkdirTemp(cache, series+".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(aside)
	own := apt{dir: filepath.Join(cache, "apt")}
	if err := own.prepare(ctx); err != nil {
		return err
	}
	name, version, err := own.newest(ctx, series)
	if err != nil {
		return err
	}
	debs := apt{dir: own.dir}
	if _, err := debs.run(ctx, "apt-get", "-q", "download", name+"="+version); err != nil {
		return err
	}
	found, err := filepath.Glob(filepath.Join(own.dir, name+"_*.deb"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("find the downloaded %s: %d files, want 1 (%v)", name, len(found), err)
	}
	defer os.Remove(found[0])
	if _, err := output(ctx, "", "dpkg-deb", "--extract", found[0], aside); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(aside, "package"), []byte(name+" "+version+"\n"), 0o644); err != nil {
		return err
	}
	kernel, err := unpacked(aside)
	if err != nil {
		return err
	}
	base := strings.TrimSuffix(kernel.Modules, "/lib/modules/"+kernel.Release)
	if _, err := output(ctx, "", "depmod", "--basedir", base, kernel.Release); err != nil {
		return err
	}
	if err := os.Chmod(aside, 0o755); err != nil {
		return err
	}
	return os.Rename(aside, filepath.Join(cache, series))
}

// unpacked describes the kernel whose package was unpacked at place.
func unpacked(place string) (Kernel, error) {
	images, err := filepath.Glob(filepath.Join(place, "boot", "vmlinuz-*"))
	if err != nil {
		return Kernel{}, err
	}
	if len(images) != 1 {
		return Kernel{}, fmt.Errorf("find the kernel in %s: %d images, want 1", place, len(images))
	}
	kernel := Kernel{Image: images[0]}
	kernel.Release = strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	if text, err := os.ReadFile(filepath.Join(place, "package")); err == nil {
		kernel.Package = strings.TrimSpace(string(text))
	}
	for _, lib := range []string{"lib", "usr/lib"} {
		dir := filepath.Join(place, lib, "modules", kernel.Release)
		if _, err := os.Stat(dir); err == nil {
			kernel.Modules = dir
			return kernel, nil
		}
	}
	return Kernel{}, fmt.Errorf("find the modules of %s in %s: no lib/modules/%s", kernel.Release, place, kernel.Release)
}

// lockDir keeps other processes from filling the same cache.
func lockDir(dir string) (unlock func(), err error) {
	file, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		file.Close()
		return nil, fmt.Errorf("lock %s: %w", file.Name(), err)
	}
	return func() { file.Close() }, nil
}
