// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// bootModules is what the first process needs before it has the host's root.
// crc32c comes first: later modules ask for it by an alias that nothing answers
// until /sbin/modprobe is there.
var bootModules = []string{"crc32c_generic", "virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"}

// moduleIndex knows where each module of a kernel is and what it needs.
type moduleIndex struct {
	dir     string
	path    map[string]string   // by name, relative to dir
	needs   map[string][]string // by name: names, all of them, in no order to rely on
	builtIn map[string]bool
}

// moduleName turns a path into the name that modprobe takes.
func moduleName(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".")
	return strings.ReplaceAll(name, "-", "_")
}

// readModules reads what depmod wrote and what was built in.
func readModules(dir string) (*moduleIndex, error) {
	index := &moduleIndex{dir: dir, path: map[string]string{}, needs: map[string][]string{}, builtIn: map[string]bool{}}
	text, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, fmt.Errorf("read the module list: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		path, rest, found := strings.Cut(line, ":")
		if !found {
			continue
		}
		name := moduleName(path)
		index.path[name] = path
		for need := range strings.FieldsSeq(rest) {
			index.needs[name] = append(index.needs[name], moduleName(need))
		}
	}
	text, err = os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the built-in module list: %w", err)
	}
	for path := range strings.Lines(string(text)) {
		index.builtIn[moduleName(path)] = true
	}
	return index, nil
}

// order lists the modules to load for the wanted ones, each after its needs.
// What is built in is left out.
func (m *moduleIndex) order(wanted []string) ([]string, error) {
	var ordered []string
	var add func(name string) error
	add = func(name string) error {
		if m.builtIn[name] || slices.Contains(ordered, name) {
			return nil
		}
		if m.path[name] == "" {
			return fmt.Errorf("find module %s: neither in %s nor built in", name, m.dir)
		}
		for _, need := range m.needs[name] {
			if err := add(need); err != nil {
				return err
			}
		}
		ordered = append(ordered, name)
		return nil
	}
	for _, name := range wanted {
		if err := add(strings.ReplaceAll(name, "-", "_")); err != nil {
			return nil, err
		}
	}
	return ordered, nil
}

// read returns a module, decompressed.
func (m *moduleIndex) read(ctx context.Context, name string) ([]byte, error) {
	path := filepath.Join(m.dir, m.path[name])
	switch filepath.Ext(path) {
	case ".ko":
		return os.ReadFile(path)
	case ".xz":
		text, err := output(ctx, "", "xz", "--decompress", "--stdout", path)
		return []byte(text), err
	case ".zst":
		text, err := output(ctx, "", "zstd", "--decompress", "--stdout", path)
		return []byte(text), err
	case ".gz":
		file, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		plain, err := gzip.NewReader(file)
		if err != nil {
			return nil, fmt.Errorf("decompress %s: %w", path, err)
		}
		return io.ReadAll(plain)
	}
	return nil, fmt.Errorf("read module %s: compression %s is not known here", path, filepath.Ext(path))
}
