// SPDX-License-Identifier: Apache-2.0

// Command vmrun runs a command under another kernel, in an emulated machine (see
// package vm), and exits as the command did; 125 when it could not be run.
//
//	go run ./test/vm/cmd/vmrun -kernel 6.1 -- uname -a
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"vippin/test/vm"
)

func main() {
	series := flag.String("kernel", vm.Series[0], fmt.Sprintf("series, one of %v", vm.Series))
	timeout := flag.Duration("timeout", 5*time.Minute, "from power on to power off")
	cpus := flag.Int("cpus", 1, "processors")
	mem := flag.Int("mem", 1024, "memory in MiB")
	console := flag.Bool("console", false, "show the kernel's console at the end")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: vmrun [flags] -- command [argument ...]")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, *series, *console, vm.Options{
		Command: flag.Args(), Timeout: *timeout, CPUs: *cpus, MemMB: *mem, Output: os.Stdout,
	}))
}

func run(ctx context.Context, series string, console bool, opts vm.Options) int {
	const notRun = 125
	kernel, err := vm.Fetch(ctx, series)
	if err != nil {
		fmt.Fprintln(os.Stderr, "vmrun:", err)
		return notRun
	}
	result, err := vm.Run(ctx, kernel, opts)
	if console {
		fmt.Fprintf(os.Stderr, "%s", result.Console)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "vmrun:", err)
		return notRun
	}
	fmt.Fprintf(os.Stderr, "vmrun: %s: command started after %.1f s, off after %.1f s, exit %d\n",
		kernel.Package, result.Boot.Seconds(), result.Total.Seconds(), result.ExitCode)
	return result.ExitCode
}
