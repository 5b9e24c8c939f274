// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"testing"
	"time"

	"vippin/test/lab"
	"vippin/test/traffic"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// The program's server and clients understand each other across a lab.
func TestServeAndAsk(t *testing.T) {
	l := lab.ForTest(t, "program", lab.Options{Hosts: 1, SingleRouter: true})
	at := lab.Port(lab.ServerFar.V6, 7000).String()
	ctx, stop := context.WithCancel(t.Context())
	var seen bytes.Buffer
	served := make(chan error, 1)
	go func() { served <- run(ctx, []string{"-netns", l.Server.NS, "serve", at}, &seen) }()
	// The server is there when it answers.
	if err := lab.Await(ctx, "the server", func() (bool, error) {
		_, err := traffic.Ask(ctx, l.Hosts[0].Do, "tcp", netip.AddrPort{}, netip.MustParseAddrPort(at), time.Second)
		return err == nil, nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"flows", "-count", "3", "-interval", "10ms", "-for", "100ms", at},
		{"flows", "-proto", "udp", "-one-way", "-interval", "10ms", "-for", "100ms", at},
		{"ping", "-count", "2", "-interval", "10ms", "-for", "200ms", lab.ServerFar.V6.String()},
	} {
		var out bytes.Buffer
		if err := run(t.Context(), append([]string{"-netns", l.Hosts[0].NS}, args...), &out); err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		var report traffic.Report
		if err := json.Unmarshal(out.Bytes(), &report); err != nil {
			t.Fatalf("%v: %v in %s", args, err, out.String())
		}
		if len(report.Flows) == 0 || len(report.Broken()) > 0 {
			t.Errorf("%v: %s", args, report)
		}
	}
	for _, word := range []string{"put", "get"} {
		if err := run(t.Context(), []string{"-netns", l.Hosts[0].NS, word, "-octets", "1000000", at}, &bytes.Buffer{}); err != nil {
			t.Errorf("%s: %v", word, err)
		}
	}
	stop()
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	var streams map[string]traffic.Stream
	if err := json.Unmarshal(seen.Bytes(), &streams); err != nil {
		t.Fatal(err)
	}
	protocols := make(map[string]int)
	for _, s := range streams {
		protocols[s.Proto]++
	}
	if protocols["tcp"] < 4 || protocols["udp"] != 1 || protocols["icmp"] != 2 {
		t.Errorf("the server saw %v", protocols)
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{{}, {"dance"}, {"flows"}, {"flows", "nowhere"}, {"-netns", "no-such-namespace", "get", "198.51.100.10:1"}} {
		if err := run(t.Context(), args, &bytes.Buffer{}); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
}
