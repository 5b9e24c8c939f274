// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const mib = 1 << 20

// weigh notes what a process takes at rest, and the BPF maps and programs it has open.
func (m *meter) weigh(ctx context.Context, pid int) error {
	const rest = 10 * time.Second // twice what the daemon does now and then
	before, err := processorTime(pid)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(rest):
	}
	after, err := processorTime(pid)
	if err != nil {
		return err
	}
	m.note(sizeIdle, float64((after-before).Milliseconds())/rest.Seconds())
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		var kib float64
		for format, what := range map[string]string{"VmRSS: %f": sizeResident, "RssAnon: %f": sizeOwn} {
			if _, err := fmt.Sscanf(line, format, &kib); err == nil {
				m.note(what, kib*1024/mib)
			}
		}
	}
	octets, err := bpfMemory(pid)
	m.note(sizeBPF, octets/mib)
	return err
}

// processorTime is what a process has had: proc(5), fields 14 and 15 of stat,
// in ticks of 10 ms.
func processorTime(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, fields, _ := strings.Cut(string(stat), ") ") // the name may have blanks
	var user, system int64
	words := strings.Fields(fields)
	if len(words) < 13 {
		return 0, fmt.Errorf("read /proc/%d/stat: %q", pid, stat)
	}
	_, err = fmt.Sscan(words[11]+" "+words[12], &user, &system)
	return time.Duration(user+system) * 10 * time.Millisecond, err
}

// bpfMemory adds up what the kernel says of the maps and programs a process has open.
func bpfMemory(pid int) (octets float64, err error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil {
		return 0, err
	}
	seen := make(map[string]float64) // a map may be open twice
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue // closed meanwhile
		}
		if err != nil {
			return 0, err
		}
		var id string
		var size float64
		for line := range strings.Lines(string(text)) {
			switch name, value, _ := strings.Cut(strings.TrimSpace(line), ":\t"); name {
			case "map_id", "prog_id":
				id = name + value
			case "memlock":
				_, err = fmt.Sscan(value, &size)
			}
		}
		if err != nil {
			return 0, fmt.Errorf("read %s: %w", file, err)
		}
		if id != "" {
			seen[id] = size
		}
	}
	for _, size := range seen {
		octets += size
	}
	return octets, nil
}
