// SPDX-License-Identifier: Apache-2.0

// Command verifier has every BPF program verified by this machine's kernel and by
// the kernels of package vm, and writes what each made of it into the table of
// docs/kernels.md. With -here it prints, as JSON, what this kernel says alone.
//
//	go run ./test/vm/cmd/verifier
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vippin/test/vm"
	"vippin/test/vm/internal/figures"
)

// kernel is what one kernel made of the programs.
type kernel struct {
	Release  string
	Programs []figures.Program
}

func main() {
	here := flag.Bool("here", false, "print what this kernel says, as JSON")
	file := flag.String("file", "docs/kernels.md", "whose table is written")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if *here {
		err = show()
	} else {
		err = record(ctx, *file)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "verifier:", err)
		os.Exit(1)
	}
}

func show() error {
	found, err := measure()
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(found)
}

func measure() (kernel, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return kernel{}, fmt.Errorf("ask for the kernel's release: %w", err)
	}
	programs, err := figures.Measure()
	return kernel{Release: unix.ByteSliceToString(name.Release[:]), Programs: programs}, err
}

// record asks the emulated kernels, then this one, and writes the table.
func record(ctx context.Context, file string) error {
	program, err := vm.Build(ctx, "verifier", "./test/vm/cmd/verifier")
	if err != nil {
		return err
	}
	var kernels []kernel
	for _, series := range vm.Series {
		found, err := elsewhere(ctx, series, program)
		if err != nil {
			return fmt.Errorf("kernel %s: %w", series, err)
		}
		kernels = append(kernels, found)
	}
	found, err := measure()
	if err != nil {
		return fmt.Errorf("this kernel: %w", err)
	}
	return write(file, table(append(kernels, found)))
}

// elsewhere runs this command in a machine. The programs need the types of what
// are modules there.
func elsewhere(ctx context.Context, series, program string) (found kernel, err error) {
	image, err := vm.Fetch(ctx, series)
	if err != nil {
		return found, err
	}
	const script = `modprobe -a nf_conntrack nf_nat && exec "$1" -here`
	result, err := vm.Run(ctx, image, vm.Options{Command: []string{"sh", "-c", script, "sh", program}, Timeout: 5 * time.Minute})
	if err != nil {
		return found, err
	}
	if result.ExitCode != 0 {
		return found, fmt.Errorf("exit code %d: %s", result.ExitCode, result.Output)
	}
	if err := json.Unmarshal(result.Output, &found); err != nil {
		return found, fmt.Errorf("read what it says: %w: %q", err, result.Output)
	}
	return found, nil
}
