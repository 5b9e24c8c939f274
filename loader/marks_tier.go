// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

func (d *Dataplane) marksSetting() uint32 {
	if d.marks {
		return 1
	}
	return 0
}

// enterTier replaces the attached programs by the loaded ones. Where those before
// learnt about conntrack in the other way, what they noted of it means nothing to
// these: until Apply has looked at conntrack's table, no flow is pinned, and every
// flow that was left alone stays so.
func (d *Dataplane) enterTier() error {
	settings, err := d.settings()
	if err != nil {
		return err
	}
	if settings.Marks == d.marksSetting() {
		return d.replacePrograms()
	}
	wasMarks := settings.Marks != 0
	uniques, err := readMap[slotAddr, uniqueState](d.maps.Uniques)
	if err != nil {
		return err
	}
	for key := range uniques {
		if err := d.maps.Uniques.Put(key, uniqueNew); err != nil {
			return fmt.Errorf("write map uniques: %w", err)
		}
	}
	if err := errors.Join(d.replacePrograms(), d.forgetEntries()); err != nil {
		return err
	}
	settings.Marks = d.marksSetting() // last: after a failure all is done again
	if err := d.maps.Settings.Put(uint32(0), settings); err != nil {
		return fmt.Errorf("write settings: %w", err)
	}
	if wasMarks {
		return removeMarks()
	}
	return nil
}

// forgetEntries lets every note of an unpinned flow stand for whichever conntrack
// entry its next packet has.
func (d *Dataplane) forgetEntries() error {
	var failed error
	err := scanMap(d.maps.Unpinned, func(key flowKey, note leftAlone) bool {
		note.Conntrack = 0
		err := d.maps.Unpinned.Update(key, note, ebpf.UpdateExist)
		if failed = ignoreNotExist(err); failed != nil {
			failed = fmt.Errorf("write map unpinned: %w", failed)
		}
		return failed == nil
	})
	return errors.Join(err, failed)
}

// leaveTier removes what only the programs needed.
func (d *Dataplane) leaveTier() error {
	if !d.marks {
		return nil
	}
	return removeMarks()
}
