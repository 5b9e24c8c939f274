// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	noteworthyGap = 100 * time.Millisecond
	keptErrors    = 5
	datagramMax   = 65536
)

// FlowOptions describes a client flow that sends one request an interval and
// checks the answer.
type FlowOptions struct {
	ID       string         // one word that names the flow at the server; default: protocol and both ends
	Proto    string         // tcp or udp
	Local    netip.AddrPort // fixed source; an unset address or port is chosen by the kernel
	Remote   netip.AddrPort
	Interval time.Duration // default 1 s
	Timeout  time.Duration // for connecting (tcp) and for an answer; default 15 s (tcp), 250 ms (udp)
	Requests uint64        // stop by itself after so many; 0 = go on until Stop
	OneWay   bool          // udp: the server only remembers, nothing is answered
}

// Flow is a running client flow.
type Flow struct {
	opts   FlowOptions
	conn   net.Conn
	reader *bufio.Reader
	cancel context.CancelFunc
	done   chan struct{}
	turn   chan struct{} // full while a request is under way, or none may be

	mu      sync.Mutex
	report  FlowReport
	waiting time.Time // when the oldest request without an answer was sent
}

// StartFlow opens the flow's socket in the namespace, waits for the first
// answer (not for one-way flows) and then goes on in the background until ctx
// ends, Stop is called or, with TCP, an error breaks the connection.
func StartFlow(ctx context.Context, in Enter, opts FlowOptions) (*Flow, error) {
	if opts.Interval == 0 {
		opts.Interval = time.Second
	}
	if opts.Timeout == 0 {
		opts.Timeout = 15 * time.Second
		if opts.Proto == "udp" {
			opts.Timeout = 250 * time.Millisecond
		}
	}
	connecting := opts.Timeout
	if opts.Proto == "udp" {
		connecting = 0 // no end of its own: nobody is waited for but a busy machine
	}
	conn, err := Dial(ctx, in, opts.Proto, opts.Local, opts.Remote, connecting)
	if err != nil {
		return nil, err
	}
	local := netip.MustParseAddrPort(conn.LocalAddr().String())
	if opts.ID == "" {
		opts.ID = fmt.Sprintf("%s/%s/%s", opts.Proto, local, opts.Remote)
	}
	ctx, cancel := context.WithCancel(ctx)
	f := &Flow{
		opts: opts, conn: conn, reader: bufio.NewReaderSize(conn, 512),
		cancel: cancel, done: make(chan struct{}), turn: make(chan struct{}, 1),
		report: FlowReport{ID: opts.ID, Proto: opts.Proto, Local: local, Remote: opts.Remote},
	}
	if err := f.first(ctx); err != nil {
		cancel()
		conn.Close()
		return nil, fmt.Errorf("start flow %s: %w", opts.ID, err)
	}
	go f.run(ctx)
	return f, nil
}

// first exchanges one request; UDP tries again while Timeout × 20 lasts.
func (f *Flow) first(ctx context.Context) error {
	tries := 1
	if f.opts.Proto == "udp" && !f.opts.OneWay {
		tries = 20
	}
	var err error
	for range tries {
		if err = f.exchange(); err == nil || ctx.Err() != nil {
			break
		}
	}
	return err
}

func (f *Flow) run(ctx context.Context) {
	defer close(f.done)
	defer f.conn.Close()
	stop := context.AfterFunc(ctx, func() { f.conn.Close() })
	defer stop()
	ticker := time.NewTicker(f.opts.Interval)
	defer ticker.Stop()
	for f.opts.Requests == 0 || f.sent() < f.opts.Requests {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		select {
		case <-ctx.Done():
			return
		case f.turn <- struct{}{}:
		}
		err := f.exchange()
		<-f.turn
		if ctx.Err() != nil {
			return
		}
		if err == nil || (f.opts.Proto == "udp" && errors.Is(err, os.ErrDeadlineExceeded)) {
			continue // a lost datagram is a gap, not an error
		}
		f.fail(err)
		if f.opts.Proto == "tcp" {
			return
		}
	}
}

// exchange sends one request and reads its answer.
func (f *Flow) exchange() error {
	f.mu.Lock()
	number := f.report.Sent
	f.report.Sent++
	if f.waiting.IsZero() && !f.opts.OneWay {
		f.waiting = time.Now()
	}
	f.mu.Unlock()
	word := wordHello
	if f.opts.OneWay {
		word = wordOneWay
	}
	request := fmt.Sprintf("%s %s %d", word, f.opts.ID, number)
	if err := f.conn.SetDeadline(time.Now().Add(f.opts.Timeout)); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	line := request
	if f.opts.Proto == "tcp" {
		line += "\n"
	}
	if _, err := io.WriteString(f.conn, line); err != nil {
		return fmt.Errorf("send request %d: %w", number, err)
	}
	if f.opts.OneWay {
		return nil
	}
	for {
		answer, err := f.read()
		if err != nil {
			return fmt.Errorf("wait for answer %d: %w", number, err)
		}
		source, echoed, err := parseSource(answer)
		if err != nil {
			return err
		}
		f.mu.Lock()
		f.report.Sources = addSource(f.report.Sources, source)
		f.mu.Unlock()
		if echoed == request {
			f.answered()
			return nil
		}
		if f.opts.Proto == "tcp" || !strings.HasPrefix(echoed, word+" "+f.opts.ID+" ") {
			return fmt.Errorf("answer to %q instead of %q", echoed, request)
		}
		// UDP: a late answer to an earlier request.
	}
}

func (f *Flow) read() (string, error) {
	if f.opts.Proto == "tcp" {
		return f.reader.ReadString('\n')
	}
	buffer := make([]byte, 512)
	n, err := f.conn.Read(buffer)
	return string(buffer[:n]), err
}

func (f *Flow) answered() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.report.Answered++
	f.report.Gaps = endGap(f.report.Gaps, f.waiting)
	f.waiting = time.Time{}
}

// endGap adds the wait that ends now if it is worth noting.
func endGap(gaps []Gap, since time.Time) []Gap {
	if length := time.Since(since); !since.IsZero() && length >= noteworthyGap {
		return append(gaps, Gap{Start: since, Length: length})
	}
	return gaps
}

func (f *Flow) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.report.Errors) < keptErrors {
		f.report.Errors = append(f.report.Errors, err.Error())
	}
}

func (f *Flow) sent() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.report.Sent
}

// Report tells what became of the flow so far; a wait that is still going on
// is its last gap.
func (f *Flow) Report() FlowReport {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.report
	r.Sources = append([]netip.AddrPort(nil), r.Sources...)
	r.Errors = append([]string(nil), r.Errors...)
	r.Gaps = endGap(append([]Gap(nil), r.Gaps...), f.waiting)
	return r
}

// Done is closed when the flow has ended.
func (f *Flow) Done() <-chan struct{} { return f.done }

// Stop ends the flow and returns what became of it.
func (f *Flow) Stop() FlowReport {
	report := f.Report() // before: the end of the connection is no gap
	f.cancel()
	<-f.done
	return report
}

// Flows are several client flows.
type Flows []*Flow

// StartFlows starts count flows, a few at a time; opts says what flow i is. On
// an error the ones already started are stopped.
func StartFlows(ctx context.Context, in Enter, count int, opts func(i int) FlowOptions) (Flows, error) {
	flows := make(Flows, count)
	var group errgroup.Group
	group.SetLimit(16)
	for i := range flows {
		group.Go(func() (err error) {
			flows[i], err = StartFlow(ctx, in, opts(i))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		flows.Stop()
		return nil, err
	}
	return flows, nil
}

// Between does something while no flow waits for an answer: each has one to its
// last request, and sends the next one afterwards.
func (fs Flows) Between(do func()) {
	for _, f := range fs {
		f.turn <- struct{}{}
		defer func() { <-f.turn }()
	}
	do()
}

// Report tells what became of the flows so far.
func (fs Flows) Report() Report {
	var r Report
	for _, f := range fs {
		r.Flows = append(r.Flows, f.Report())
	}
	return r
}

// Stop ends the flows and returns what became of them.
func (fs Flows) Stop() Report {
	r := Report{}
	for _, f := range fs {
		if f != nil {
			r.Flows = append(r.Flows, f.Report())
			f.cancel()
		}
	}
	for _, f := range fs {
		if f != nil {
			<-f.done
		}
	}
	return r
}

// Ask sends one request from a socket of its own and returns the source that
// the server saw. UDP tries again until the timeout.
func Ask(ctx context.Context, in Enter, proto string, local, remote netip.AddrPort, timeout time.Duration) (netip.AddrPort, error) {
	opts := FlowOptions{Proto: proto, Local: local, Remote: remote, Timeout: timeout}
	if proto == "udp" {
		opts.Timeout = max(timeout/20, 10*time.Millisecond)
	}
	flow, err := StartFlow(ctx, in, opts)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return flow.Stop().Sources[0], nil
}

// parseSource takes "SOURCE address:port request" apart.
func parseSource(answer string) (source netip.AddrPort, request string, err error) {
	word, rest, _ := strings.Cut(strings.TrimSpace(answer), " ")
	if word != wordSource {
		return netip.AddrPort{}, "", fmt.Errorf("read the answer %q: it does not begin with %s", answer, wordSource)
	}
	text, request, _ := strings.Cut(rest, " ")
	if source, err = netip.ParseAddrPort(text); err != nil {
		return netip.AddrPort{}, "", fmt.Errorf("read the source in %q: %w", answer, err)
	}
	return source, request, nil
}
