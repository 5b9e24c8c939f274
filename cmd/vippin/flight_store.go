// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"vippin/policy"
)

// failoversName is the file in state_dir.
const failoversName = "failovers.json"

// failoversMost bounds the file, in octets.
const failoversMost = 1 << 20

// failoverStore keeps the records of failovers in state_dir.
type failoverStore struct{ dir string }

func (s failoverStore) path() string { return filepath.Join(s.dir, failoversName) }

// Load returns no records when there is no file.
func (s failoverStore) Load() ([]policy.Failover, error) {
	f, err := os.Open(s.path())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the records of failovers: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 2*failoversMost))
	if err != nil {
		return nil, fmt.Errorf("read the records of failovers: %w", err)
	}
	var records []policy.Failover
	if err := json.Unmarshal(data, &records); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", s.path(), err)
	}
	return records, nil
}

// Take is Load for who writes from then on: what cannot be read is moved aside, and
// what was being written when a daemon was killed is removed.
func (s failoverStore) Take() ([]policy.Failover, error) {
	halves, _ := filepath.Glob(filepath.Join(s.dir, "."+failoversName+".*"))
	for _, half := range halves {
		_ = os.Remove(half)
	}
	records, err := s.Load()
	if err == nil {
		return records, nil
	}
	aside := s.path() + ".damaged"
	if moved := os.Rename(s.path(), aside); moved != nil {
		return nil, errors.Join(err, moved)
	}
	return nil, fmt.Errorf("%w: moved to %s, the records begin anew", err, aside)
}

// Save replaces the file in one step.
func (s failoverStore) Save(data []byte) error {
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return fmt.Errorf("make state_dir: %w", err)
	}
	if err := replaceFile(s.path(), data); err != nil {
		return fmt.Errorf("write the records of failovers: %w", err)
	}
	return nil
}

// encodeFailovers leaves out as many of the oldest as are too many.
func encodeFailovers(records []policy.Failover) ([]byte, error) {
	for {
		data, err := json.Marshal(fillFailovers(records))
		if err != nil {
			return nil, fmt.Errorf("encode the records of failovers: %w", err)
		}
		if len(data) < failoversMost || len(records) == 0 {
			return append(data, '\n'), nil
		}
		records = records[(len(records)+7)/8:]
	}
}
