// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Drive sends datagrams at a pace of its own, however many of them are answered.
type Drive struct {
	opts   FlowOptions
	conn   net.Conn
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	turn   sync.Mutex // to send

	mu     sync.Mutex
	report DriveReport
}

// DriveReport is what became of a Drive so far.
type DriveReport struct {
	Sent, Answered uint64
	Sources        []netip.AddrPort // that the server saw, in order of first appearance
	Last           time.Time        // when the last answer came
	LongestGap     time.Duration    // between two answers
}

// StartDrive opens a UDP flow and sends a request every opts.Interval (default
// 1 ms), from the first answer on. The Server knows the flow by opts.ID.
func StartDrive(ctx context.Context, in Enter, opts FlowOptions) (*Drive, error) {
	if opts.Interval == 0 {
		opts.Interval = time.Millisecond
	}
	conn, err := Dial(ctx, in, "udp", opts.Local, opts.Remote, 0) // nobody is waited for but a busy machine
	if err != nil {
		return nil, err
	}
	if opts.ID == "" {
		opts.ID = fmt.Sprintf("drive/%s/%s", conn.LocalAddr(), opts.Remote)
	}
	d := &Drive{opts: opts, conn: conn}
	if err := errors.Join(makeRoom(conn.(*net.UDPConn)), d.begin(ctx)); err != nil {
		conn.Close()
		return nil, fmt.Errorf("start %s: %w", opts.ID, err)
	}
	ctx, d.cancel = context.WithCancel(ctx)
	d.tasks.Go(func() { d.send(ctx) })
	d.tasks.Go(d.receive)
	return d, nil
}

// begin sends requests until one is answered.
func (d *Drive) begin(ctx context.Context) error {
	var err error
	for range 50 {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err = d.request(); err != nil {
			return err
		}
		if err = d.conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			return fmt.Errorf("set deadline: %w", err)
		}
		if err = d.answer(); err == nil {
			return d.conn.SetReadDeadline(time.Time{})
		}
	}
	return err
}

func (d *Drive) send(ctx context.Context) {
	ticker := time.NewTicker(d.opts.Interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			d.turn.Lock()
			_ = d.request() // an ICMP error of an earlier one; what is missing shows
			d.turn.Unlock()
		}
	}
}

func (d *Drive) request() error {
	d.mu.Lock()
	number := d.report.Sent
	d.report.Sent++
	d.mu.Unlock()
	_, err := fmt.Fprintf(d.conn, "%s %s %d", wordHello, d.opts.ID, number)
	return err
}

func (d *Drive) receive() {
	for {
		if err := d.answer(); errors.Is(err, net.ErrClosed) {
			return
		}
	}
}

func (d *Drive) answer() error {
	buffer := make([]byte, 512)
	n, err := d.conn.Read(buffer)
	if err != nil {
		return err
	}
	source, _, err := parseSource(string(buffer[:n]))
	if err != nil {
		return err
	}
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	r := &d.report
	if !r.Last.IsZero() {
		r.LongestGap = max(r.LongestGap, now.Sub(r.Last))
	}
	r.Last = now
	r.Answered++
	r.Sources = addSource(r.Sources, source)
	return nil
}

// Report tells what became of it so far.
func (d *Drive) Report() DriveReport {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.report
	r.Sources = append([]netip.AddrPort(nil), r.Sources...)
	return r
}

// Mend forgets the longest gap so far.
func (d *Drive) Mend() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.report.LongestGap = 0
}

// Between does something while no request is sent, and none is under way unless it
// takes longer than a second.
func (d *Drive) Between(do func()) {
	d.turn.Lock()
	defer d.turn.Unlock()
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if r := d.Report(); r.Answered >= r.Sent {
			break
		}
	}
	do()
}

// Stop ends it, as Between does, and returns what became of it.
func (d *Drive) Stop() (r DriveReport) {
	d.Between(func() {
		r = d.Report()
		d.cancel()
		d.conn.Close()
	})
	d.tasks.Wait()
	return r
}
