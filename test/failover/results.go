// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"vippin/test/traffic/swarm"
)

// Result is what one case gave. Times are in milliseconds.
type Result struct {
	Case
	Machine string  `json:"machine"` // kernel, processors, versions
	Load    float64 `json:"load"`    // average of the minute before

	Survival    map[string]swarm.Survival `json:"survival,omitempty"` // by protocol
	Held        int                       `json:"held,omitempty"`     // flows that the standby had before the fault
	Probes      int                       `json:"probes,omitempty"`
	ProbesAlive int                       `json:"probes_alive,omitempty"` // the times are theirs alone
	OutageMs    float64                   `json:"outage_ms,omitempty"`    // longest time between two answers
	DetectMs    float64                   `json:"detect_ms,omitempty"`    // fault to MASTER
	FirstMs     float64                   `json:"first_ms,omitempty"`     // MASTER to the first probe's first answer
	AllMs       float64                   `json:"all_ms,omitempty"`       // MASTER to the last probe's first answer
	CommitMs    float64                   `json:"commit_ms,omitempty"`    // conntrackd's own word
	Unmade      int                       `json:"unmade,omitempty"`       // young: connections that the crash came before

	Latency *Latency `json:"latency,omitempty"`
	Phases  []Phase  `json:"phases,omitempty"`

	Exceptions *Exceptions `json:"exceptions,omitempty"` // strict: vippin's own counters at the end

	Replicated int     `json:"replicated,omitempty"`  // flows that were made
	Missing    int     `json:"missing,omitempty"`     // of these, not at the peer
	Rate       float64 `json:"rate,omitempty"`        // new flows a second
	CPUSeconds float64 `json:"cpu_seconds,omitempty"` // user and system, both routers, for 100,000 flows, beyond what they take idle
	IdleCPU    float64 `json:"idle_cpu,omitempty"`    // share of a processor that both daemons take without flows
	TookMs     float64 `json:"took_ms,omitempty"`     // bulk: from the daemon's start until the peer has all
	FlowBytes  float64 `json:"flow_bytes,omitempty"`  // memory of a flow at the peer
	OwnBytes   float64 `json:"own_bytes,omitempty"`   // and at the router where it was born

	Notes []string `json:"notes,omitempty"`
	Error string   `json:"error,omitempty"` // the case could not be measured; it is tried again
}

// journal is the file of results, one JSON object a line.
type journal struct {
	path    string
	results []Result
	done    map[string]bool
}

// openJournal reads what a run that was interrupted has left. A line that was
// cut off is ignored: its case is measured again.
func openJournal(path string, fresh bool) (*journal, error) {
	j := &journal{path: path, done: make(map[string]bool)}
	if fresh {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("begin new results: %w", err)
		}
		return j, nil
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return j, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the results: %w", err)
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r Result
		if json.Unmarshal(lines.Bytes(), &r) == nil && r.Error == "" && !j.done[r.Key()] {
			j.keep(r)
		}
	}
	if len(text) > 0 && text[len(text)-1] != '\n' {
		if err := j.write([]byte("\n")); err != nil {
			return nil, err
		}
	}
	return j, lines.Err()
}

func (j *journal) keep(r Result) {
	j.results = append(j.results, r)
	j.done[r.Key()] = true
}

// add appends a result at once, so that nothing is lost by an interruption.
func (j *journal) add(r Result) error {
	line, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode a result: %w", err)
	}
	if err := j.write(append(line, '\n')); err != nil {
		return err
	}
	if r.Error == "" {
		j.keep(r)
	}
	return nil
}

func (j *journal) write(line []byte) error {
	file, err := os.OpenFile(j.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open the results: %w", err)
	}
	_, err = file.Write(line)
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("write a result: %w", err)
	}
	return nil
}

// remaining are the cases without a result.
func (j *journal) remaining(cases []Case) (left []Case) {
	for _, c := range cases {
		if !j.done[c.Key()] {
			left = append(left, c)
		}
	}
	return left
}
