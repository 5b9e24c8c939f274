// SPDX-License-Identifier: Apache-2.0

// Command bench prints how many packets a second this kernel takes through a
// router, with vippin and without: what "make bench-pin" runs.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"vippin/loader/bench"
	"vippin/policy"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	switch err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(os.Stderr, "bench: interrupted")
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	opts := bench.Options{Progress: func(text string) { fmt.Fprintln(stderr, text) }}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Func("cases", fmt.Sprintf("comma list of %v", policy.BenchCases()), list(&opts.Cases, word[policy.BenchCase]))
	flags.Func("directions", "comma list of out, back", list(&opts.Directions, word[policy.BenchDirection]))
	flags.Func("flows", "comma list of numbers of flows (default 1,10000)", list(&opts.Flows, strconv.Atoi))
	flags.Func("sizes", "comma list of frame sizes in octets (default 64)", list(&opts.Sizes, strconv.Atoi))
	flags.Func("families", "comma list of ipv4, ipv6 (default ipv4)", list(&opts.Families, word[string]))
	flags.IntVar(&opts.Rounds, "rounds", 9, "how often every case is measured")
	seconds := flags.Float64("seconds", 0.6, "how long a case is measured in a round, in seconds of the core's time")
	flags.BoolVar(&opts.NoChecksum, "no-checksum", false, "leave out UDP's checksum over IPv4")
	asJSON := flags.Bool("j", false, "print JSON")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("do not know what %q is for: there are flags only", flags.Args())
	}
	opts.Time = time.Duration(*seconds * float64(time.Second))
	rows, err := bench.Run(ctx, opts)
	if err != nil {
		return err
	}
	if *asJSON {
		encoder := json.NewEncoder(stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(rows)
	}
	return printTable(stdout, rows)
}

func word[T ~string](text string) (T, error) { return T(text), nil }

func list[T any](to *[]T, parse func(string) (T, error)) func(string) error {
	return func(text string) error {
		*to = nil
		for _, item := range strings.Split(text, ",") {
			value, err := parse(item)
			if err != nil {
				return fmt.Errorf("%q is no value for it", item)
			}
			*to = append(*to, value)
		}
		return nil
	}
}

// printTable prints a row for each case, with what "make bench-pin" is for: the
// rate against plain masquerade.
func printTable(to io.Writer, rows []policy.BenchRow) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "family\tsize\tdirection\tflows\tcase\tMpps\tspread\tns/packet\tvs masquerade\tspread\tvs redirect\trounds\t")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%d\t%s\t%d\t%s\t%.3f\t%.1f%%\t%.0f\t%s\t%s\t%s\t%d\t\n",
			r.Family, r.Size, r.Direction, r.Flows, r.Case, r.Mpps, 100*r.Spread, r.NsPerPacket,
			ratio(r.VsMasquerade), ratio(r.SpreadVsMasque), ratio(r.VsRedirect), r.Rounds)
	}
	return w.Flush()
}

func ratio(value *float64) string {
	if value == nil {
		return "-"
	}
	return fmt.Sprintf("%.3f", *value)
}
