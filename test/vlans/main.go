// SPDX-License-Identifier: Apache-2.0

// Command vlans measures what vippin takes for a trunk of many VLANs, a pin each: how
// long it takes to start, to switch all of them and to show them, and how much memory.
// Here each VLAN is a cable of its own, since not every kernel has 802.1Q, so that the
// times are a real processor's; with -vm it also measures real VLANs, in emulated
// machines (see package vm).
//
//	go run ./test/vlans -vm -file docs/bench/vlans.md
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vippin/test/vm"
)

func main() {
	var o options
	counts := flag.String("counts", "1,50,200", "how many VLANs, a list")
	flag.IntVar(&o.rounds, "rounds", 3, "how often each is measured; the medians are told")
	flag.StringVar(&o.file, "file", "", "where to write the tables, default: standard output")
	flag.BoolVar(&o.machines, "vm", false, "measure in emulated machines, too")
	flag.BoolVar(&o.here, "here", false, "measure real VLANs, on this kernel, and print JSON")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := o.parse(*counts)
	if err == nil {
		err = o.run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "vlans:", err)
		stop()
		os.Exit(1)
	}
}

type options struct {
	counts   []int
	rounds   int
	file     string
	machines bool
	here     bool
}

func (o *options) parse(counts string) error {
	for word := range strings.SplitSeq(counts, ",") {
		count, err := strconv.Atoi(word)
		if err != nil || count < 1 || count > vlansMax {
			return fmt.Errorf("%q is no number of VLANs (1 to %d)", word, vlansMax)
		}
		o.counts = append(o.counts, count)
	}
	if o.rounds < 1 {
		return fmt.Errorf("-rounds %d: at least 1", o.rounds)
	}
	return nil
}

// report is what one kernel's results are.
type report struct {
	Kernel  string
	Results []result
}

func (o *options) run(ctx context.Context) error {
	if o.here {
		r, err := o.measure(ctx, tagged)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(r)
	}
	native, err := o.measure(ctx, cables)
	if err != nil {
		return err
	}
	text := new(bytes.Buffer)
	native.write(text, o)
	if o.machines {
		for _, series := range vm.Series {
			r, err := o.elsewhere(ctx, series)
			if err != nil {
				return fmt.Errorf("kernel %s: %w", series, err)
			}
			r.writeEmulated(text)
		}
	}
	if o.file == "" {
		_, err = text.WriteTo(os.Stdout)
		return err
	}
	return os.WriteFile(o.file, text.Bytes(), 0o644)
}

func (o *options) measure(ctx context.Context, kind kind) (r report, err error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return r, fmt.Errorf("ask for the kernel's release: %w", err)
	}
	r.Kernel = unix.ByteSliceToString(name.Release[:])
	for _, count := range o.counts {
		result, err := measure(ctx, kind, count, o.rounds)
		if err != nil {
			return r, fmt.Errorf("with %d VLANs: %w", count, err)
		}
		r.Results = append(r.Results, result)
	}
	return r, nil
}

// elsewhere runs this command in a machine, once round.
func (o *options) elsewhere(ctx context.Context, series string) (r report, err error) {
	const slowness = "VIPPIN_LAB_SLOWNESS=5"
	image, err := vm.Fetch(ctx, series)
	if err != nil {
		return r, err
	}
	vippin, err := vm.Build(ctx, "vippin", "./cmd/vippin")
	if err != nil {
		return r, err
	}
	self, err := vm.Build(ctx, "vlans", "./test/vlans")
	if err != nil {
		return r, err
	}
	words := []string{self, "-here", "-rounds", "1", "-counts", strings.Trim(strings.ReplaceAll(fmt.Sprint(o.counts), " ", ","), "[]")}
	done, err := vm.Run(ctx, image, vm.Options{Command: words, Env: []string{slowness, "VIPPIN_BIN=" + vippin}, Timeout: 20 * time.Minute, MemMB: 2048})
	if err == nil && done.ExitCode != 0 {
		err = fmt.Errorf("exit code %d", done.ExitCode)
	}
	if err == nil {
		lines := bytes.Split(bytes.TrimSpace(done.Output), []byte("\n")) // what went wrong in the cleaning up stands before
		err = json.Unmarshal(lines[len(lines)-1], &r)
	}
	if err != nil {
		return r, errors.Join(err, fmt.Errorf("it said: %s", done.Output))
	}
	return r, nil
}
