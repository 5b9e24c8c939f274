// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"vippin/policy"
)

// The files in state_dir.
const (
	togglesName        = "toggles.json"
	fastpathToggleName = "fastpath.json"
)

// toggleStore keeps the toggles in state_dir, so that they outlive a restart
// and a reboot.
type toggleStore struct{ dir string }

func (s toggleStore) path() string { return filepath.Join(s.dir, togglesName) }

// Load returns no toggles when there is no file. With any other error there
// are none either: whoever only reads should say it and go on, whoever writes
// should not, since it would overwrite what is there.
func (s toggleStore) Load() (policy.Toggles, error) {
	data, err := os.ReadFile(s.path())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read toggles: %w", err)
	}
	toggles, err := policy.DecodeToggles(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.path(), err)
	}
	return toggles, nil
}

// Save replaces the file in one step: a crash leaves the old or the new one.
func (s toggleStore) Save(toggles policy.Toggles) error {
	data, err := policy.EncodeToggles(toggles)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return fmt.Errorf("make state_dir: %w", err)
	}
	if err := replaceFile(s.path(), data); err != nil {
		return fmt.Errorf("write toggles: %w", err)
	}
	return nil
}

// Change writes toggles down and has them take effect. They are written first: a
// restart in between must not undo them. Did they take no effect, the file says what
// it said before.
func (s toggleStore) Change(before, after policy.Toggles, effect func() error) error {
	if err := s.Save(after); err != nil {
		return err
	}
	err := effect()
	if err == nil {
		return nil
	}
	if kept := s.Save(before); kept != nil {
		return fmt.Errorf("%w; the next start will try it again: put the toggles back: %w", err, kept)
	}
	return err
}

// LoadFastpath returns nil when the fast path was not switched by hand. With any
// other error it is nil too.
func (s toggleStore) LoadFastpath() (*bool, error) {
	path := filepath.Join(s.dir, fastpathToggleName)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the fast path's toggle: %w", err)
	}
	on, err := policy.DecodeFastpathToggle(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &on, nil
}

// SaveFastpath replaces the file in one step, or removes it (nil).
func (s toggleStore) SaveFastpath(toggle *bool) error {
	path := filepath.Join(s.dir, fastpathToggleName)
	if toggle == nil {
		err := os.Remove(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			err = syncDir(s.dir)
		}
		if err != nil {
			return fmt.Errorf("forget the fast path's toggle: %w", err)
		}
		return nil
	}
	data, err := policy.EncodeFastpathToggle(*toggle)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return fmt.Errorf("make state_dir: %w", err)
	}
	if err := replaceFile(path, data); err != nil {
		return fmt.Errorf("write the fast path's toggle: %w", err)
	}
	return nil
}

func replaceFile(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, writeErr := f.Write(data)
	err = errors.Join(writeErr, f.Chmod(0o644), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes a rename outlive a power cut.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
