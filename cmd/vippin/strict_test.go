// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vippin/loader"
	"vippin/policy"
)

// fakeGate remembers whose answers may pass.
type fakeGate struct {
	mu       sync.Mutex
	holding  bool
	acked    []uint16 // ports of inside hosts
	released []uint16
	closed   bool
	broken   chan error
}

func (g *fakeGate) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-g.broken:
		return err
	}
}

func (g *fakeGate) SetHolding(on bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.holding = on
	return nil
}

func (g *fakeGate) Acked(flows []policy.Flow)   { g.note(&g.acked, flows) }
func (g *fakeGate) Release(flows []policy.Flow) { g.note(&g.released, flows) }

func (g *fakeGate) note(into *[]uint16, flows []policy.Flow) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, flow := range flows {
		*into = append(*into, flow.Src.Port)
	}
	slices.Sort(*into)
}

func (g *fakeGate) Counts() (loader.GateCounts, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return loader.GateCounts{Acked: uint64(len(g.acked))}, nil
}

func (g *fakeGate) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	return nil
}

func (g *fakeGate) isHolding() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.holding
}

func (g *fakeGate) isClosed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.closed
}

func (g *fakeGate) ackedPorts() []uint16 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.acked)
}

func (g *fakeGate) releasedPorts() []uint16 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.released)
}

func (f *fakeTable) SetPrompt(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.prompt = on
}

func (f *fakeTable) NewGate(policy.SyncConfig) (gate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.noGate != nil {
		return nil, f.noGate
	}
	g := &fakeGate{broken: make(chan error, 1)}
	f.gates <- g
	return g, nil
}

// setMode is what a reload of the configuration does.
func (s *station) setMode(mode policy.SyncMode) {
	config := policy.DefaultConfig(s.name, "")
	config.Sync.Mode = mode
	config.Sync.StandbyTimeout = time.Hour
	config.Sync.Peers = []policy.PeerConfig{{Name: "the other one"}}
	s.flows.Set(config)
}

// inStrictCouple runs a test of two routers, a being MASTER in strict mode.
func inStrictCouple(t *testing.T, test func(t *testing.T, c *couple, g *fakeGate)) {
	inCouple(t, func(t *testing.T, c *couple) {
		c.a.setMode(policy.SyncStrict)
		c.settle()
		test(t, c, <-c.a.kernel.gates)
	})
}

func wantPorts(t *testing.T, what string, got []uint16, want ...uint16) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func TestStrictAnswersWaitForThePeer(t *testing.T) {
	inStrictCouple(t, func(t *testing.T, c *couple, g *fakeGate) {
		if !g.isHolding() || !c.a.kernel.prompt {
			t.Error("nothing is held though the peer is up")
		}
		c.a.begin(1, 2, 3)
		c.settle()
		wantPorts(t, "acknowledged", g.ackedPorts(), 1, 2, 3)
		wantPorts(t, "released", g.releasedPorts())
		c.b.wants(1, 2, 3)
		if got := c.a.flows.Status().Strict; got == nil || !got.Holding || got.Acked != 3 {
			t.Errorf("status says %+v", got)
		}
	})
}

// What the peer refuses does not wait for it.
func TestStrictReleasesWhatIsRefused(t *testing.T) {
	inStrictCouple(t, func(t *testing.T, c *couple, g *fakeGate) {
		c.b.kernel.mu.Lock()
		c.b.kernel.full = true
		c.b.kernel.mu.Unlock()
		c.a.begin(9)
		c.settle()
		wantPorts(t, "acknowledged", g.ackedPorts())
		wantPorts(t, "released", g.releasedPorts(), 9)
	})
}

func TestStrictHoldsWhileAPeerIsUp(t *testing.T) {
	inCouple(t, func(t *testing.T, c *couple) {
		c.cut()
		c.a.setMode(policy.SyncStrict)
		c.settle()
		g := <-c.a.kernel.gates
		if g.isHolding() || c.a.kernel.prompt {
			t.Error("answers are held though there is no peer")
		}
		c.join()
		if !g.isHolding() {
			t.Error("nothing is held though the peer is up")
		}
		c.cut()
		c.settle()
		if g.isHolding() {
			t.Error("answers are held though the peer has left")
		}
	})
}

// A peer that comes is told of the whole table first: until it has that, nothing
// waits for it.
func TestStrictHoldsAfterTheBulk(t *testing.T) {
	inCouple(t, func(t *testing.T, c *couple) {
		c.cut()
		c.a.setMode(policy.SyncStrict)
		stall := make(chan struct{})
		c.b.kernel.mu.Lock()
		c.b.kernel.stall = stall
		c.b.kernel.mu.Unlock()
		c.a.begin(1, 2)
		c.join()
		g := <-c.a.kernel.gates
		if g.isHolding() {
			t.Error("answers are held for a peer that does not have the table")
		}
		close(stall)
		c.settle()
		if !g.isHolding() {
			t.Error("nothing is held though the peer has the table")
		}
	})
}

func TestStrictGateFails(t *testing.T) {
	inCouple(t, func(t *testing.T, c *couple) {
		c.a.kernel.mu.Lock()
		c.a.kernel.noGate = errors.New("queue 747 is taken")
		c.a.kernel.mu.Unlock()
		c.a.setMode(policy.SyncStrict)
		c.settle()
		warnings := c.a.flows.Warnings(nil)
		if len(warnings) != 1 || !strings.Contains(warnings[0], "queue 747 is taken") {
			t.Errorf("warnings are %q", warnings)
		}
		c.a.kernel.mu.Lock()
		c.a.kernel.noGate = nil
		c.a.kernel.mu.Unlock()
		time.Sleep(2 * replicaWait)
		g := <-c.a.kernel.gates
		synctest.Wait()
		if !g.isHolding() || len(c.a.flows.Warnings(nil)) != 0 {
			t.Errorf("it holds: %v, warnings %q", g.isHolding(), c.a.flows.Warnings(nil))
		}
		g.broken <- errors.New("the socket broke")
		time.Sleep(2 * replicaWait)
		synctest.Wait()
		if !g.isClosed() {
			t.Error("the broken gate is not closed")
		}
		if again := <-c.a.kernel.gates; !again.isHolding() {
			t.Error("no other gate took its place")
		}
	})
}

func TestStrictEndsByReload(t *testing.T) {
	inStrictCouple(t, func(t *testing.T, c *couple, g *fakeGate) {
		c.a.begin(1)
		c.settle()
		c.a.setMode(policy.SyncAsync)
		c.settle()
		if !g.isClosed() || g.isHolding() || c.a.kernel.prompt {
			t.Errorf("closed %v, holding %v, prompt %v", g.isClosed(), g.isHolding(), c.a.kernel.prompt)
		}
		if c.a.flows.Status().Strict != nil {
			t.Error("status tells of strict mode")
		}
		c.a.setMode(policy.SyncStrict)
		c.settle()
		if again := <-c.a.kernel.gates; !again.isHolding() {
			t.Error("strict again, and nothing is held")
		}
		if got := c.a.flows.Status().Strict.Acked; got != 1 {
			t.Errorf("the first gate's counts are forgotten: %d", got)
		}
	})
}
