// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vippin/test/lab"
	"vippin/test/traffic/swarm"
)

const (
	wanDelay     = time.Millisecond // on the way to the server
	latencyBlock = 10               // connections, before it is the next arm's turn
	latencyRest  = time.Millisecond
)

// Latency is how long connections took to be made, in milliseconds.
type Latency struct {
	Made   int       `json:"made"`
	Failed int       `json:"failed"`
	P50    float64   `json:"p50"`
	P95    float64   `json:"p95"`
	P99    float64   `json:"p99"`
	Max    float64   `json:"max"`
	Blocks []float64 `json:"blocks,omitempty"` // medians of ten that were made together; the arms took turns
}

// latencyOf sums durations up; 0 is a connection that failed.
func latencyOf(took []time.Duration) (l Latency) {
	var values []float64
	for _, d := range took {
		if d == 0 {
			l.Failed++
			continue
		}
		values = append(values, ms(d))
	}
	if l.Made = len(values); l.Made > 0 {
		l.P50, l.P95, l.P99, l.Max = median(values), quantile(values, 0.95), quantile(values, 0.99), quantile(values, 1)
	}
	return l
}

// measureLatency times connections by all arms in turn, in labs that stand at the
// same time: whatever else the machine does meets every arm.
func measureLatency(ctx context.Context, group []Case) []Result {
	results := make([]Result, len(group))
	lines := make([]*line, len(group))
	var errs []error
	for i, c := range group {
		results[i].Case = c
		var err error
		if lines[i], err = openLine(ctx, fmt.Sprintf("bench%d", i), c); err != nil {
			errs = append(errs, fmt.Errorf("prepare %s: %w", c.Key(), err))
			break
		}
	}
	if len(errs) == 0 {
		errs = append(errs, takeTurns(ctx, lines, group[0].Flows))
	}
	for i, l := range lines {
		if l == nil {
			continue
		}
		results[i].Notes = l.notes
		results[i].Latency = l.latency()
		if l.arm.strict {
			results[i].Exceptions = l.exceptions()
		}
		errs = append(errs, l.end())
	}
	for i := range results {
		results[i].fail(errors.Join(errs...)) // one arm alone is no comparison
	}
	return results
}

// line is a bed whose server is further away.
type line struct {
	*bed
	delay  *lab.Delay
	client *worker
	took   []time.Duration
	blocks []float64
}

func openLine(ctx context.Context, name string, c Case) (_ *line, err error) {
	b, err := newBed(ctx, name, c)
	if err != nil {
		return nil, err
	}
	l := &line{bed: b}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.end())
		}
	}()
	if b.server, err = b.startWorker(b.Server, "server"); err != nil {
		return nil, err
	}
	if err := b.server.Tell("Serve", swarm.ServerPlan{Local: b.of(lab.ServerWAN), TCP: true}); err != nil {
		return nil, err
	}
	if l.client, err = b.startWorker(b.Hosts[probeHost], "client"); err != nil {
		return nil, err
	}
	if err := b.awaitReplicated(ctx, 0); err != nil {
		return nil, err
	}
	if _, err := l.connect(latencyBlock); err != nil { // neighbours, caches
		return nil, err
	}
	l.delay, err = b.Server.Delay(ctx, "eth0", wanDelay)
	return l, err
}

func (l *line) connect(count int) (swarm.Connected, error) {
	return l.client.Connect(swarm.ConnectPlan{
		Local: l.of(lab.HostEnds(probeHost)), Server: l.of(lab.ServerWAN), Count: count, Rest: latencyRest,
	})
}

// takeTurns makes the connections, some by each arm.
func takeTurns(ctx context.Context, lines []*line, count int) error {
	for done := 0; done < count; done += latencyBlock {
		for i := range lines {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			l := lines[(i+done/latencyBlock)%len(lines)] // none is always after the same one
			took, err := l.connect(latencyBlock)
			if err != nil {
				return err
			}
			l.took = append(l.took, took...)
			l.blocks = append(l.blocks, latencyOf(took).P50)
		}
	}
	return nil
}

func (l *line) latency() *Latency {
	sum := latencyOf(l.took)
	sum.Blocks = l.blocks
	return &sum
}

func (l *line) end() error {
	var errs []error
	if l.delay != nil {
		errs = append(errs, l.delay.End())
	}
	return errors.Join(append(errs, l.close())...)
}
