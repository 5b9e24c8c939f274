// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"vippin/policy"
)

// ackTimer takes the time from Put to Acked.
type ackTimer struct {
	router
	mu    sync.Mutex
	put   map[policy.FlowKey]time.Time
	took  []time.Duration
	acked chan struct{}
}

func (a *ackTimer) Acked(flows []policy.Flow) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	for i := range flows {
		a.took = append(a.took, now.Sub(a.put[flows[i].FlowKey]))
		a.acked <- struct{}{}
	}
}

// One iteration is a flow that is put until the handler has heard of its
// acknowledgement, over TLS 1.3 on the loopback address of this process: one after the
// other, and 5,000 a second.
func BenchmarkPrompt(b *testing.B) {
	for name, every := range map[string]time.Duration{"alone": 0, "5000": 200 * time.Microsecond} {
		b.Run(name, func(b *testing.B) { benchmarkPrompt(b, every) })
	}
}

func benchmarkPrompt(b *testing.B, every time.Duration) {
	connA, connB := tlsPair(b)
	timer := &ackTimer{put: make(map[policy.FlowKey]time.Time), acked: make(chan struct{}, b.N)}
	timer.router.news = make(chan struct{}, 1)
	heard := &counter{want: -1}
	heard.router.news = make(chan struct{}, 1)
	from := NewSession(Config{Node: "a", Handler: timer})
	to := NewSession(Config{Node: "b", Handler: heard})
	from.SetPrompt(true)
	from.SetState(ours)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- from.Run(ctx, connA) }()
	go func() { done <- to.Run(ctx, connB) }()
	flows := manyFlows(b.N)
	b.ResetTimer()
	start := time.Now()
	for n := range flows {
		timer.mu.Lock()
		timer.put[flows[n].FlowKey] = time.Now()
		timer.mu.Unlock()
		from.Put(&flows[n])
		if every == 0 {
			<-timer.acked
		} else {
			time.Sleep(time.Until(start.Add(time.Duration(n+1) * every)))
		}
	}
	for range flows {
		if every != 0 {
			<-timer.acked
		}
	}
	b.StopTimer()
	slices.Sort(timer.took)
	b.ReportMetric(float64(timer.took[len(timer.took)/2].Microseconds()), "µs-median")
	b.ReportMetric(float64(timer.took[len(timer.took)*99/100].Microseconds()), "µs-p99")
	stop()
	<-done
	<-done
}
