// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"runtime"
	"testing"
	"time"

	"vippin/policy"
)

// One iteration is a flow, in batches of batchFlows.
func BenchmarkEncode(b *testing.B) {
	ids, _ := testNames(b)
	w := batchWriter{ids: ids}
	flows := manyFlows(batchFlows)
	b.ReportAllocs()
	for n := range b.N {
		if n%batchFlows == 0 {
			w.begin(uint64(n + 1))
		}
		if err := w.flow(&flows[n%batchFlows]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	ids, names := testNames(b)
	w := batchWriter{ids: ids}
	w.begin(1)
	for _, f := range manyFlows(batchFlows) {
		if err := w.flow(&f); err != nil {
			b.Fatal(err)
		}
	}
	r := batchReader{names: names}
	b.ReportAllocs()
	b.ReportMetric(float64(len(w.b))/batchFlows, "B/flow")
	for n := 0; n < b.N; n += batchFlows {
		if _, err := r.readBatch(w.b); err != nil {
			b.Fatal(err)
		}
	}
}

func manyFlows(n int) []policy.Flow {
	flows := make([]policy.Flow, n)
	for i := range flows {
		flows[i] = udpFlow(i)
	}
	return flows
}

// counter takes all flows.
type counter struct {
	router
	flows int
	want  int
	all   chan struct{}
}

func (c *counter) Batch(b *Batch) []Refusal {
	if c.flows += len(b.Flows); c.flows == c.want {
		close(c.all)
	}
	return nil
}

// One iteration is a flow that a peer hears of, over TLS 1.3 on the loopback address
// of this process, both sides and their bookkeeping together.
func BenchmarkSession(b *testing.B) {
	for _, c := range []struct {
		name string
		put  func(s *Session, f *policy.Flow)
	}{
		{"bulk", func(s *Session, f *policy.Flow) {
			if err := s.PutBulk(context.Background(), f); err != nil {
				panic(err)
			}
		}},
		{"put", func(s *Session, f *policy.Flow) {
			for s.Stats().Lag > 30000 {
				runtime.Gosched()
			}
			s.Put(f)
		}},
		{"paced", func(s *Session, f *policy.Flow) { // 30 a millisecond
			if s.Put(f); s.Stats().Lag%30 == 29 {
				time.Sleep(time.Millisecond)
			}
		}},
	} {
		b.Run(c.name, func(b *testing.B) { benchmarkSession(b, c.put) })
	}
}

func benchmarkSession(b *testing.B, put func(*Session, *policy.Flow)) {
	connA, connB := tlsPair(b)
	heard := &counter{want: b.N, all: make(chan struct{})}
	heard.router.news = make(chan struct{}, 1)
	from := NewSession(Config{Node: "a", Handler: newRouter()})
	to := NewSession(Config{Node: "b", Handler: heard})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- from.Run(ctx, connA) }()
	go func() { done <- to.Run(ctx, connB) }()
	from.SetState(ours)
	from.BeginBulk([]string{"Core"}, uint64(b.N))
	flows := manyFlows(200000)
	b.ReportAllocs()
	b.ResetTimer()
	for n := range b.N {
		put(from, &flows[n%len(flows)])
	}
	<-heard.all
	b.StopTimer()
	b.ReportMetric(float64(from.Stats().Sent.Bytes)/float64(b.N), "B/flow")
	b.ReportMetric(float64(b.N)/float64(from.Stats().Sent.Batches), "flows/batch")
	stop()
	<-done
	<-done
}

// tlsPair is two ends of a TLS connection that each know the other's key.
func tlsPair(tb testing.TB) (a, b net.Conn) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		tb.Fatal(err)
	}
	config := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		Certificates:       []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: private}},
		InsecureSkipVerify: true, // it is the price that is measured
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer listener.Close()
	if a, err = net.Dial("tcp", listener.Addr().String()); err != nil {
		tb.Fatal(err)
	}
	if b, err = listener.Accept(); err != nil {
		tb.Fatal(err)
	}
	return tls.Client(a, config), tls.Server(b, config)
}
