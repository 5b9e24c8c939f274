// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"time"

	"vippin/test/vm/internal/order"
)

// Options say what to run and how large the machine is. Only Command is needed.
type Options struct {
	Command []string      // program, found in PATH or by its host path, and arguments
	Dir     string        // working directory, default: the checkout
	Env     []string      // KEY=value, besides PATH, HOME and TERM
	Timeout time.Duration // from power on to power off, default 5 minutes
	CPUs    int           // default 1: with more, the emulator now and then runs code that a kernel is patching (int3)
	MemMB   int           // default 1024
	Output  io.Writer     // gets the output as it comes, besides Result.Output; may be nil
}

// Result is how a command in the machine went.
type Result struct {
	Output   []byte        // standard output and error
	ExitCode int           // as a shell has it: 128 + n when signal n ended it
	Console  []byte        // what the kernel said
	Boot     time.Duration // from power on until the command started
	Total    time.Duration // from power on to power off
}

// ErrNotRun is in the chain of an error that means: the command did not run to
// its end (the machine did not come up, died, or time was over).
var ErrNotRun = errors.New("the command did not run to its end")

// errFastClock: a kernel measures the processor's clock when it boots, and may be wrong
// by far when the emulator gets no time just then.
var errFastClock = errors.New("the machine's clock runs too fast")

const mostBoots = 3 // for a clock that is right

// Run boots the kernel, runs the command and waits until the machine is off. A
// command that fails is no error: look at ExitCode. On an error Result holds what
// was seen until then. When ctx ends, or the caller dies, the machine is ended. One
// whose clock runs too fast is booted again, the command may have begun then.
func Run(ctx context.Context, kernel Kernel, opts Options) (Result, error) {
	if len(opts.Command) == 0 {
		return Result{}, errors.New("run in the machine: no command given")
	}
	if opts.Timeout == 0 {
		opts.Timeout = 5 * time.Minute
	}
	checkout, err := Checkout()
	if err != nil {
		return Result{}, err
	}
	if opts.Dir == "" {
		opts.Dir = checkout
	}
	cache, err := CacheDir()
	if err != nil {
		return Result{}, err
	}
	initramfs, err := buildInitramfs(ctx, kernel, order.Order{
		Release:       kernel.Release,
		KernelModules: kernel.Modules,
		Keep:          []string{checkout, cache, opts.Dir},
		Command:       opts.Command,
		Dir:           opts.Dir,
		Env:           opts.Env,
	})
	if err != nil {
		return Result{}, fmt.Errorf("prepare the machine: %w", err)
	}
	image, err := unnamedFile(cache, initramfs)
	if err != nil {
		return Result{}, fmt.Errorf("prepare the machine: %w", err)
	}
	defer image.Close()
	ctx, cancel := context.WithTimeoutCause(ctx, opts.Timeout,
		fmt.Errorf("the machine's %v are over", opts.Timeout))
	defer cancel()
	for boot := 1; ; boot++ {
		result, err := runMachine(ctx, qemuArgs(kernel, opts), image, opts.Output)
		if boot == mostBoots || !errors.Is(err, errFastClock) {
			return result, err
		}
	}
}

// unnamedFile makes a file that goes with its last descriptor, however this
// process ends.
func unnamedFile(dir string, content []byte) (*os.File, error) {
	file, err := os.CreateTemp(dir, "initramfs-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(file.Name()); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	if _, err := file.Write(content); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// buildInitramfs puts together the first root: guest, its modules and the order.
func buildInitramfs(ctx context.Context, kernel Kernel, todo order.Order) ([]byte, error) {
	index, err := readModules(kernel.Modules)
	if err != nil {
		return nil, err
	}
	names, err := index.order(bootModules)
	if err != nil {
		return nil, err
	}
	first, err := Build(ctx, "vm-guest", "./test/vm/guest")
	if err != nil {
		return nil, err
	}
	program, err := os.ReadFile(first)
	if err != nil {
		return nil, err
	}
	var archive cpio
	archive.file("/init", 0o755, program)
	archive.dir(order.ModuleDir)
	for _, name := range names {
		content, err := index.read(ctx, name)
		if err != nil {
			return nil, err
		}
		todo.Modules = append(todo.Modules, name+".ko")
		archive.file(order.ModuleDir+"/"+name+".ko", 0o644, content)
	}
	text, err := json.Marshal(todo)
	if err != nil {
		return nil, err
	}
	archive.file(order.Path, 0o644, text)
	return archive.end(), nil
}

// runMachine starts the emulator and follows its three streams until it ends.
func runMachine(ctx context.Context, args []string, initramfs *os.File, live io.Writer) (Result, error) {
	var (
		result          Result
		printed         bytes.Buffer
		console         bytes.Buffer
		reports         reporting
		complaint       bytes.Buffer
		printedTo       io.Writer = &printed
		start                     = time.Now()
		streams, finish           = newStreams()
	)
	if live != nil {
		printedTo = io.MultiWriter(&printed, live)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	reports.start, reports.giveUp = start, cancel
	for _, to := range []io.Writer{&console, printedTo, &reports} { // descriptors 3, 4, 5
		if err := streams.add(to); err != nil {
			finish()
			return result, err
		}
	}
	cmd := exec.CommandContext(ctx, emulator, args...)
	cmd.Stdout, cmd.Stderr = &complaint, &complaint
	cmd.ExtraFiles = append(slices.Clone(streams.ends), initramfs)
	err := runTied(cmd, streams.closeEnds)
	finish()
	result = Result{
		Output: printed.Bytes(), Console: console.Bytes(), ExitCode: reports.last.ExitCode,
		Boot: reports.boot, Total: time.Since(start),
	}
	switch {
	case ctx.Err() != nil:
		return result, fmt.Errorf("%w: %w%s", ErrNotRun, context.Cause(ctx), tail("console", result.Console))
	case err != nil:
		return result, fmt.Errorf("%w: run %s: %w%s", ErrNotRun, emulator, err, tail("its words", complaint.Bytes()))
	case reports.last.Event == order.Failed:
		return result, fmt.Errorf("%w: in the machine: %s", ErrNotRun, reports.last.Detail)
	case reports.last.Event != order.Exited:
		return result, fmt.Errorf("%w: the machine went off without a report%s", ErrNotRun, tail("console", result.Console))
	}
	return result, nil
}

// reporting takes the first process's reports as they come.
type reporting struct {
	start  time.Time
	giveUp func(error)
	rest   []byte
	boot   time.Duration
	last   order.Report
}

// Write takes JSON lines, in pieces of any size.
func (r *reporting) Write(piece []byte) (int, error) {
	r.rest = append(r.rest, piece...)
	for {
		line, rest, whole := bytes.Cut(r.rest, []byte("\n"))
		if !whole {
			return len(piece), nil
		}
		r.rest = rest
		if err := json.Unmarshal(line, &r.last); err != nil {
			return 0, fmt.Errorf("read a report %q: %w", line, err)
		}
		if r.last.Event == order.Started {
			r.boot = time.Since(r.start)
			if r.last.Uptime > r.boot {
				r.giveUp(fmt.Errorf("%w: up for %s by itself, for %s by the host's", errFastClock, r.last.Uptime, r.boot))
			}
		}
	}
}

// tail quotes the end of what a machine said, for an error message.
func tail(what string, text []byte) string {
	const most = 8000 // a whole kernel panic
	text = bytes.TrimSpace(text)
	if len(text) == 0 {
		return ""
	}
	if len(text) > most {
		text = text[len(text)-most:]
	}
	return fmt.Sprintf("; %s:\n%s", what, text)
}
