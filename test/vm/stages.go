// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Stage is one run of a test program in the machine; a boot serves several.
type Stage struct {
	Name    string
	Before  string   // shell commands, on one line
	Program string   // from BuildTest
	Package string   // the program's folder, where it is run: "./test"
	Tests   []string // top-level tests to run
	Flags   []string // of the test program
	Env     []string // KEY=value
}

// Outcome is what became of one top-level test.
type Outcome struct {
	Result string // "pass", "fail", "skip"; "" when it did not come to its end
	Took   time.Duration
	Log    string // what it and its subtests wrote
}

// stageLine begins a stage's part of the output.
const stageLine = "\n@@ stage %d\n"

// RunStages boots the kernel, runs the stages one after the other, the later ones
// also when an earlier one fails, and returns for each what became of its tests by
// name. A test that was never begun is not among them. On an error the outcomes are
// those until then. Options.Command is not looked at.
func RunStages(ctx context.Context, kernel Kernel, opts Options, stages []Stage) (Result, []map[string]Outcome, error) {
	checkout, err := Checkout()
	if err != nil {
		return Result{}, nil, err
	}
	opts.Command = []string{"sh", "-c", stagesScript(checkout, stages)}
	result, err := Run(ctx, kernel, opts)
	var outcomes []map[string]Outcome
	for i := range stages {
		said, readErr := outcomesIn(ctx, stageOutput(result.Output, i))
		if readErr != nil {
			return result, outcomes, errors.Join(err, readErr)
		}
		outcomes = append(outcomes, said)
	}
	return result, outcomes, err
}

// stagesScript is a shell script.
func stagesScript(checkout string, stages []Stage) string {
	var script strings.Builder
	for i, stage := range stages {
		args := append([]string{"env"}, stage.Env...)
		args = append(args, stage.Program, "-test.v=test2json", "-test.run", "^("+strings.Join(stage.Tests, "|")+")$")
		args = append(args, stage.Flags...)
		for i, arg := range args {
			args[i] = "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
		}
		fmt.Fprintf(&script, "printf '%s'\n%s\ncd '%s' && %s\n", strings.ReplaceAll(fmt.Sprintf(stageLine, i), "\n", `\n`), stage.Before,
			filepath.Join(checkout, stage.Package), strings.Join(args, " "))
	}
	return script.String() + "exit 0\n"
}

// stageOutput is what a stage wrote.
func stageOutput(all []byte, number int) []byte {
	_, after, found := bytes.Cut(append([]byte("\n"), all...), fmt.Appendf(nil, stageLine, number))
	if !found {
		return nil
	}
	said, _, _ := bytes.Cut(after, fmt.Appendf(nil, stageLine, number+1))
	return said
}

// outcomesIn reads what a test program wrote.
func outcomesIn(ctx context.Context, said []byte) (map[string]Outcome, error) {
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "go", "tool", "test2json", "-t")
	var complaint bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(said), &complaint
	events, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("run go tool test2json: %w: %s", err, complaint.Bytes())
	}
	parts := make(map[string]map[string]int) // of a test: its subtests' results
	outcomes, logs := make(map[string]Outcome), make(map[string]*strings.Builder)
	for decoder := json.NewDecoder(bytes.NewReader(events)); ; {
		var event struct {
			Action, Test, Output string
			Elapsed              float64 // seconds
		}
		if err := decoder.Decode(&event); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("read what go tool test2json says: %w", err)
		}
		name, _, isSubtest := strings.Cut(event.Test, "/")
		if name == "" {
			continue
		}
		if logs[name] == nil {
			logs[name], parts[name] = new(strings.Builder), make(map[string]int)
		}
		logs[name].WriteString(event.Output)
		outcome := outcomes[name]
		switch event.Action {
		case "pass", "fail", "skip":
			if isSubtest {
				parts[name][event.Action]++
			} else {
				outcome.Result = event.Action
				if parts[name]["skip"] > 0 && parts[name]["pass"] == 0 && event.Action == "pass" {
					outcome.Result = "skip" // nothing of it ran
				}
				outcome.Took = time.Duration(event.Elapsed * float64(time.Second))
			}
		}
		outcomes[name] = outcome
	}
	for name, outcome := range outcomes {
		outcome.Log = logs[name].String()
		outcomes[name] = outcome
	}
	return outcomes, nil
}
