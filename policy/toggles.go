// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
)

// Toggles are the pins that were switched on or off by hand. They beat the
// configuration until they are reset, and outlive a restart. A nil map has
// none.
type Toggles map[PinKey]bool

// togglesVersion changes when an older program would misread the file.
const togglesVersion = 1

// togglesFile is the JSON of the state file:
// {"version": 1, "toggles": {"2": false, "100.20": true, "3/voip": true}}.
type togglesFile struct {
	Version int              `json:"version"`
	Toggles map[PinKey]*bool `json:"toggles"`
}

// EncodeToggles writes the state file. The same toggles give the same bytes.
func EncodeToggles(t Toggles) ([]byte, error) {
	file := togglesFile{togglesVersion, map[PinKey]*bool{}}
	for key, on := range t {
		file.Toggles[key] = &on
	}
	data, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode toggles: %w", err)
	}
	return append(data, '\n'), nil
}

// DecodeToggles reads what EncodeToggles writes. With an error there are no
// toggles: the caller should report it and let the configuration decide. A
// missing file means no toggles and is not for DecodeToggles.
func DecodeToggles(data []byte) (Toggles, error) {
	var version struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &version); err != nil {
		return nil, damagedToggles(err)
	}
	if version.Version != togglesVersion {
		return nil, fmt.Errorf("read toggles: version %d was written by another vippin, this one knows version %d: "+
			"run the vippin that wrote it, or remove the file and toggle again", version.Version, togglesVersion)
	}
	var file togglesFile
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&file); err != nil {
		return nil, damagedToggles(err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, damagedToggles(errors.New("something follows the end"))
	}
	if file.Toggles == nil {
		return nil, damagedToggles(errors.New("\"toggles\" is missing"))
	}
	toggles := Toggles{}
	for key, on := range file.Toggles {
		if on == nil {
			return nil, damagedToggles(fmt.Errorf("toggle of pin %s has no value", key))
		}
		toggles[key] = *on
	}
	return toggles, nil
}

func damagedToggles(err error) error {
	return fmt.Errorf("read toggles: the file is damaged (%v): correct it, or remove it and toggle again; "+
		"until then the configuration decides which pins are on", err)
}

// With returns the toggles after one more. The receiver stays as it is.
func (t Toggles) With(key PinKey, on bool) Toggles {
	after := Toggles{}
	maps.Copy(after, t)
	after[key] = on
	return after
}

// Without returns the toggles after a reset. The receiver stays as it is.
func (t Toggles) Without(key PinKey) Toggles {
	after := Toggles{}
	maps.Copy(after, t)
	delete(after, key)
	return after
}

// Decide says whether a pin is on, and by whose word.
func (t Toggles) Decide(key PinKey, configured bool) (bool, EnabledBy) {
	if on, toggled := t[key]; toggled {
		return on, EnabledByToggle
	}
	return configured, EnabledByConfig
}
