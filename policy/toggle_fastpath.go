// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// fastpathToggle is the JSON of the state file: {"version": 1, "enabled": true}.
type fastpathToggle struct {
	Version int   `json:"version"`
	Enabled *bool `json:"enabled"`
}

// EncodeFastpathToggle writes the state file of a fast path that was switched by
// hand.
func EncodeFastpathToggle(on bool) ([]byte, error) {
	data, err := json.MarshalIndent(fastpathToggle{togglesVersion, &on}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode the fast path's toggle: %w", err)
	}
	return append(data, '\n'), nil
}

// DecodeFastpathToggle reads what EncodeFastpathToggle writes. With an error there
// is no toggle: the caller should report it and let the configuration decide.
func DecodeFastpathToggle(data []byte) (on bool, err error) {
	var file fastpathToggle
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err = decoder.Decode(&file); err == nil {
		_, err = decoder.Token()
		switch {
		case err == nil:
			err = errors.New("something follows the end")
		case !errors.Is(err, io.EOF):
		case file.Version != togglesVersion:
			err = fmt.Errorf("its version is %d, this program knows %d", file.Version, togglesVersion)
		case file.Enabled == nil:
			err = errors.New("\"enabled\" is missing")
		default:
			return *file.Enabled, nil
		}
	}
	return false, fmt.Errorf("read the fast path's toggle: %v: remove the file and toggle again; until then the configuration decides", err)
}

// DecideFastpath says whether the fast path is on, and by whose word. A nil toggle
// is none.
func DecideFastpath(toggle *bool, configured bool) (bool, EnabledBy) {
	if toggle != nil {
		return *toggle, EnabledByToggle
	}
	return configured, EnabledByConfig
}
