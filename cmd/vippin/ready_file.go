// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vippin/policy"
)

// What keepalived reads in a track_file: a number that it multiplies by the
// weight.
const (
	readyYes = "1\n"
	readyNo  = "0\n"
)

// write makes the files say what the statuses do: sync.ready_file whether all groups
// are ready, and FILE.GROUP for each. A file that is not to be tended any more holds
// nobody back.
func (k *readyKeeper) write(statuses []policy.ReadyStatus) {
	k.mu.Lock()
	file := k.file
	k.mu.Unlock()
	wanted := make(map[string]bool, len(k.files))
	for path := range k.files {
		wanted[path] = true
	}
	clear(k.files)
	for path, ready := range readyFiles(file, statuses) {
		wanted[path], k.files[path] = ready, true
	}
	var first error // what keeps one from being written keeps all
	for _, path := range slices.Sorted(maps.Keys(wanted)) {
		if err := writeReady(path, wanted[path]); first == nil {
			first = err
		}
	}
	k.note(first)
}

// readyFiles names the files and says what they tell.
func readyFiles(file string, statuses []policy.ReadyStatus) map[string]bool {
	files := map[string]bool{file: true}
	for _, s := range statuses {
		files[file] = files[file] && s.Ready
		own := file + "." + fileName(s.Group)
		if already, two := files[own]; two { // two names that differ in what a file name cannot have
			files[own] = already && s.Ready
		} else {
			files[own] = s.Ready
		}
	}
	return files
}

// fileName is a group's name as part of a file's: what a shell or a path could
// take amiss becomes an underscore.
func fileName(group string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '-', r == '.':
			return r
		}
		return '_'
	}, group)
}

// writeReady replaces a file in one step if it says something else, so that who
// watches it never reads half of it.
func writeReady(path string, ready bool) error {
	text := readyNo
	if ready {
		text = readyYes
	}
	if has, err := os.ReadFile(path); err == nil && bytes.Equal(has, []byte(text)) {
		return nil
	}
	aside := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := os.WriteFile(aside, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write sync.ready_file: %w", err)
	}
	if err := os.Rename(aside, path); err != nil {
		return fmt.Errorf("write sync.ready_file: %w", errors.Join(err, os.Remove(aside)))
	}
	return nil
}

// note remembers how the last attempt went. It goes on with the next one.
func (k *readyKeeper) note(err error) {
	k.mu.Lock()
	was := k.failed
	k.failed = err
	if err != nil {
		k.misses++
	}
	k.mu.Unlock()
	if err != nil && (was == nil || was.Error() != err.Error()) {
		k.log.Error("keepalived may preempt at the wrong time, trying again", "error", err)
		k.publish(policy.Event{Kind: "warning", Detail: err.Error()})
	}
}
