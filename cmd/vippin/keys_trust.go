// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"vippin/policy"
)

// trustName is the file in state_dir.
const trustName = "peers.json"

// trustStore keeps the peers' public keys in state_dir, by name: those given to
// "vippin trust". The configuration's keys come before them.
type trustStore struct{ dir string }

func (s trustStore) path() string { return filepath.Join(s.dir, trustName) }

// Load returns no keys when there is no file.
func (s trustStore) Load() (map[string]policy.PublicKey, error) {
	data, err := os.ReadFile(s.path())
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]policy.PublicKey{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the peers' keys: %w", err)
	}
	var texts map[string]string
	decoder := json.NewDecoder(bytes.NewReader(data))
	if err := decoder.Decode(&texts); err != nil {
		return nil, fmt.Errorf("%s: the file is damaged: remove it and trust the peers again: %w", s.path(), err)
	}
	keys := make(map[string]policy.PublicKey, len(texts))
	for name, text := range texts {
		key, err := policy.ParsePublicKey(text)
		if err != nil {
			return nil, fmt.Errorf("%s: peer %q: %w", s.path(), name, err)
		}
		keys[name] = key
	}
	return keys, nil
}

// Change lets edit change the keys, nobody else doing so meanwhile, and writes
// them in one step.
func (s trustStore) Change(edit func(map[string]policy.PublicKey) error) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("make state_dir: %w", err)
	}
	lock, err := os.Open(s.dir)
	if err != nil {
		return fmt.Errorf("lock state_dir: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock state_dir: %w", err)
	}
	keys, err := s.Load()
	if err != nil {
		return err
	}
	if err := edit(keys); err != nil {
		return err
	}
	data, err := json.MarshalIndent(keyTexts(keys), "", "  ")
	if err != nil {
		return fmt.Errorf("write the peers' keys: %w", err)
	}
	if err := replaceFile(s.path(), append(data, '\n')); err != nil {
		return fmt.Errorf("write the peers' keys: %w", err)
	}
	return nil
}

func keyTexts(keys map[string]policy.PublicKey) map[string]string {
	texts := make(map[string]string, len(keys))
	for name, key := range keys {
		texts[name] = key.String()
	}
	return texts
}
