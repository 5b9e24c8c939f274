// SPDX-License-Identifier: Apache-2.0

// Command vptraffic is package traffic as a program: for many flows, which need
// several processes (RLIMIT_NOFILE), and to try things by hand.
//
//	vptraffic [-netns NAME] serve ADDRESS:PORT…
//	vptraffic [-netns NAME] flows [-count N] [-interval D] [-proto tcp|udp] [-one-way] ADDRESS:PORT
//	vptraffic [-netns NAME] ping [-count N] [-interval D] ADDRESS
//	vptraffic [-netns NAME] put|get [-octets N] ADDRESS:PORT
//
// It runs until -for has passed, or until SIGINT or SIGTERM, and then prints
// what became of the flows, or what the server saw, as JSON.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"

	"vippin/test/traffic"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "vptraffic:", err)
		os.Exit(1)
	}
}

// options are the flags of every command.
type options struct {
	in       traffic.Enter
	proto    string
	count    int
	interval time.Duration
	oneWay   bool
	octets   int64
	duration time.Duration
	args     []string
}

// commands return what is printed as JSON.
var commands = map[string]func(context.Context, options) (any, error){
	"serve": serve,
	"flows": flows,
	"ping":  ping,
	"put":   func(ctx context.Context, o options) (any, error) { return bulk(ctx, o, traffic.Put) },
	"get":   func(ctx context.Context, o options) (any, error) { return bulk(ctx, o, traffic.Get) },
}

func run(ctx context.Context, args []string, out io.Writer) error {
	outer := flag.NewFlagSet("vptraffic", flag.ContinueOnError)
	namespace := outer.String("netns", "", "network namespace below /run/netns")
	if err := outer.Parse(args); err != nil {
		return err
	}
	command := commands[outer.Arg(0)]
	if command == nil {
		return fmt.Errorf("unknown command %q (one of serve, flows, ping, put, get)", outer.Arg(0))
	}
	o := options{in: traffic.Here}
	if *namespace != "" {
		o.in = traffic.Named(*namespace)
	}
	inner := flag.NewFlagSet(outer.Arg(0), flag.ContinueOnError)
	inner.StringVar(&o.proto, "proto", "tcp", "tcp or udp")
	inner.IntVar(&o.count, "count", 1, "flows, or ICMP identifiers")
	inner.DurationVar(&o.interval, "interval", time.Second, "between a flow's requests")
	inner.BoolVar(&o.oneWay, "one-way", false, "udp: ask for no answers")
	inner.Int64Var(&o.octets, "octets", 1<<30, "to transfer")
	inner.DurationVar(&o.duration, "for", 0, "stop after this time (0: at a signal)")
	if err := inner.Parse(outer.Args()[1:]); err != nil {
		return err
	}
	if o.args = inner.Args(); len(o.args) == 0 {
		return errors.New("name the address")
	}
	if o.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.duration)
		defer cancel()
	}
	result, err := command(ctx, o)
	if err != nil {
		return err
	}
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(result)
}

func serve(ctx context.Context, o options) (any, error) {
	opts := traffic.ServerOptions{Ping: true}
	for _, arg := range o.args {
		at, err := netip.ParseAddrPort(arg)
		if err != nil {
			return nil, err
		}
		opts.TCP = append(opts.TCP, at)
		opts.UDP = append(opts.UDP, at)
	}
	server, err := traffic.Serve(o.in, opts)
	if err != nil {
		return nil, err
	}
	<-ctx.Done()
	return server.Streams(), server.Close()
}

func flows(ctx context.Context, o options) (any, error) {
	remote, err := netip.ParseAddrPort(o.args[0])
	if err != nil {
		return nil, err
	}
	// Not ctx: the end of the time is not the end of the connections, Stop is.
	started, err := traffic.StartFlows(context.Background(), o.in, o.count, func(int) traffic.FlowOptions {
		return traffic.FlowOptions{Proto: o.proto, Remote: remote, Interval: o.interval, OneWay: o.oneWay}
	})
	if err != nil {
		return nil, err
	}
	<-ctx.Done()
	return started.Stop(), nil
}

func ping(ctx context.Context, o options) (any, error) {
	remote, err := netip.ParseAddr(o.args[0])
	if err != nil {
		return nil, err
	}
	opts := traffic.PingOptions{Remote: remote, Interval: o.interval, Name: fmt.Sprintf("ping-%d", os.Getpid())}
	for i := range o.count {
		opts.Identifiers = append(opts.Identifiers, uint16(os.Getpid()+i))
	}
	pings, err := traffic.StartPings(context.Background(), o.in, opts)
	if err != nil {
		return nil, err
	}
	<-ctx.Done()
	return pings.Stop(nil), nil
}

func bulk(ctx context.Context, o options, transfer func(context.Context, traffic.Enter, netip.AddrPort, int64) (traffic.Bulk, error)) (any, error) {
	remote, err := netip.ParseAddrPort(o.args[0])
	if err != nil {
		return nil, err
	}
	return transfer(ctx, o.in, remote, o.octets)
}
