// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vippin/policy"
)

// fakeKernel is where fast paths are loaded: one at a time.
type fakeKernel struct {
	mu      sync.Mutex
	noLoad  error
	broken  chan error // ends the Run of the one that is loaded
	there   []string   // its interfaces
	refused map[string]string
	slow    time.Duration // to attach
	barred  string        // why the kernel's rules keep it closed

	fakeFacts
}

type fakeFacts struct {
	loaded   *policy.FastpathConfig // nil: there is none
	attached []string
	open     bool
	loads    int
	attaches int
	bumps    int
	removed  int
	closed   int
	follows  bool
	openAt   []bool // whether changes were followed when it was opened and closed
	forgot   []policy.FlowKey
}

// facts is what was done so far.
func (f *fakeKernel) facts() fakeFacts {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fakeFacts
}

// set changes what the kernel does.
func (f *fakeKernel) set(what func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	what()
}

func (f *fakeKernel) Load(config policy.FastpathConfig) (fastTable, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.loads++
	if f.noLoad != nil {
		return nil, f.noLoad
	}
	if f.loaded != nil && f.follows {
		panic("two fast paths at a time")
	}
	f.loaded, f.open, f.broken = &config, false, make(chan error, 1)
	return &fakeFast{f}, nil
}

func (f *fakeKernel) Remove() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.removed++
	f.loaded, f.attached, f.open = nil, nil, false
	return nil
}

// fakeFast is the one that is loaded.
type fakeFast struct{ *fakeKernel }

func (f *fakeFast) Attach(interfaces []string) ([]policy.FastpathDevice, error) {
	var slow time.Duration
	f.set(func() { slow = f.slow })
	time.Sleep(slow)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.attaches++
	f.attached = nil
	var devices []policy.FastpathDevice
	for _, name := range interfaces {
		device := policy.FastpathDevice{Interface: name, Refused: f.refused[name]}
		if device.Refused == "" && slices.Contains(f.there, name) {
			device.Mode = "native"
			f.attached = append(f.attached, name)
		}
		devices = append(devices, device)
	}
	return devices, nil
}

func (f *fakeFast) SetOpen(open bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open = open
	f.openAt = append(f.openAt, f.follows)
	return nil
}

func (f *fakeFast) Bump() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bumps++
	return nil
}

func (f *fakeFast) Forget(flows []policy.FlowKey) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forgot = append(f.forgot, flows...)
	return nil
}

func (f *fakeFast) Run(ctx context.Context) error {
	f.setFollows(true)
	defer f.setFollows(false)
	select {
	case <-ctx.Done():
		return nil
	case err := <-f.broken:
		return err
	}
}

func (f *fakeFast) setFollows(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.follows = on
}

func (f *fakeFast) State() (policy.FastpathState, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return policy.FastpathState{Open: f.open && f.barred == "", Closed: f.barred, Generation: 7}, nil
}

func (f *fakeFast) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed++
	return nil
}

// inFastpath runs a test beside a keeper, and ends that.
func inFastpath(t *testing.T, config policy.FastpathConfig, test func(t *testing.T, k *fastKeeper, kernel *fakeKernel)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		kernel := &fakeKernel{there: []string{"eth0", "eth1"}, refused: map[string]string{}}
		k := newFastKeeper(slog.New(slog.DiscardHandler), kernel, func(policy.Event) {}, config)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- k.Run(ctx) }()
		synctest.Wait()
		test(t, k, kernel)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if kernel.facts().open || kernel.facts().follows {
			t.Error("it is open, or followed, after the end")
		}
		if closed := kernel.facts().openAt; len(closed) > 0 && !closed[len(closed)-1] {
			t.Error("changes were not followed to the last while it was open")
		}
	})
}

var fastOn = policy.FastpathConfig{Enabled: true, Interfaces: []string{"eth0", "eth1"}}

// wantFast checks what the state says, and that the kernel is so.
func wantFast(t *testing.T, when string, k *fastKeeper, kernel *fakeKernel, on, open bool, closed string) {
	t.Helper()
	synctest.Wait()
	state, err := k.State()
	if err != nil {
		t.Fatal(err)
	}
	if state.Enabled != on || state.Open != open || kernel.facts().open != open || !strings.Contains(state.Closed, closed) || (closed == "") != (state.Closed == "") {
		t.Errorf("%s: enabled %v, open %v, in the kernel %v, closed %q", when, state.Enabled, state.Open, kernel.facts().open, state.Closed)
	}
}

func TestFastpathOpens(t *testing.T) {
	inFastpath(t, fastOn, func(t *testing.T, k *fastKeeper, kernel *fakeKernel) {
		wantFast(t, "at the start", k, kernel, true, true, "")
		if !slices.Equal(kernel.facts().attached, fastOn.Interfaces) || len(k.Warnings()) != 0 {
			t.Errorf("attached to %v, warnings %q", kernel.facts().attached, k.Warnings())
		}
		k.Bump()
		if kernel.facts().bumps != 1 {
			t.Errorf("bumped %d times", kernel.facts().bumps)
		}
	})
}

// What an earlier daemon had goes when this one is not to have it.
func TestFastpathOffFromTheStart(t *testing.T) {
	inFastpath(t, policy.FastpathConfig{}, func(t *testing.T, k *fastKeeper, kernel *fakeKernel) {
		wantFast(t, "at the start", k, kernel, false, false, "switched off")
		k.Attach()
		time.Sleep(time.Minute)
		k.Bump()
		k.Forget(policy.FlowKey{})
		if kernel.facts().removed != 1 || kernel.facts().loads != 0 {
			t.Errorf("removed %d times, loaded %d", kernel.facts().removed, kernel.facts().loads)
		}
	})
}

func TestFastpathToggles(t *testing.T) {
	off, on := false, true
	inFastpath(t, fastOn, func(t *testing.T, k *fastKeeper, kernel *fakeKernel) {
		began := time.Now()
		for range 2 { // switching what is so already changes nothing
			k.SetToggle(&off)
			k.Settle(t.Context())
			wantFast(t, "off", k, kernel, false, false, "switched off")
			if kernel.facts().removed != 1 || kernel.facts().closed != 1 || kernel.facts().loaded != nil {
				t.Errorf("removed %d times, closed %d", kernel.facts().removed, kernel.facts().closed)
			}
		}
		k.Set(fastOn)
		k.Settle(t.Context())
		wantFast(t, "the toggle beats the configuration", k, kernel, false, false, "switched off")
		k.SetToggle(nil)
		k.Settle(t.Context())
		wantFast(t, "reset", k, kernel, true, true, "")
		if took := time.Since(began); took != 0 {
			t.Errorf("whoever switches had to wait for %v", took)
		}
		config := fastOn
		config.Enabled = false
		k.SetToggle(&on)
		k.Set(config)
		k.Settle(t.Context())
		wantFast(t, "on by toggle", k, kernel, true, true, "")
	})
}

// Settle waits however long it takes to attach, within reason.
func TestFastpathSettles(t *testing.T) {
	inFastpath(t, policy.FastpathConfig{Interfaces: []string{"eth0"}}, func(t *testing.T, k *fastKeeper, kernel *fakeKernel) {
		on := true
		kernel.set(func() { kernel.slow = 5 * time.Second })
		k.SetToggle(&on)
		k.Settle(t.Context())
		wantFast(t, "on", k, kernel, true, true, "")
		kernel.set(func() { kernel.slow = time.Minute })
		k.Set(fastOn)
		began := time.Now()
		k.Settle(t.Context())
		if took := time.Since(began); took != fastSettle {
			t.Errorf("waited %v", took)
		}
	})
}

func TestFastpathCannotBeLoaded(t *testing.T) {
	inFastpath(t, fastOn, func(t *testing.T, k *fastKeeper, kernel *fakeKernel) {
		off, on := false, true
		k.SetToggle(&off)
		k.Settle(t.Context())
		kernel.set(func() { kernel.noLoad = errors.New("this kernel lacks BTF") })
		loads := kernel.facts().loads
		k.SetToggle(&on)
		k.Settle(t.Context())
		wantFast(t, "it cannot be loaded", k, kernel, true, false, "lacks BTF")
		warnings := k.Warnings()
		if len(warnings) != 1 || !strings.Contains(warnings[0], "lacks BTF") {
			t.Errorf("warnings are %q", warnings)
		}
		for range 1000 { // links that change do not make it try all the time
			k.Attach()
			time.Sleep(time.Millisecond)
		}
		if tries := kernel.facts().loads - loads; tries != 1 {
			t.Errorf("tried %d times in a second", tries)
		}
		kernel.set(func() { kernel.noLoad = nil })
		time.Sleep(fastFailed)
		wantFast(t, "a changed link lets it try again", k, kernel, true, true, "")
	})
}

// What the firewall asks for is told as it is.
func TestFastpathClosedByRules(t *testing.T) {
	inFastpath(t, fastOn, func(t *testing.T, k *fastKeeper, kernel *fakeKernel) {
		const why = "nft rule with queue in inet ips forward" + policy.FastpathQueues
		kernel.set(func() { kernel.barred = why })
		state, err := k.State()
		if err != nil || !state.Enabled || state.Open || state.Closed != why {
			t.Errorf("%+v, %v", state, err)
		}
		if warnings := k.Warnings(); len(warnings) != 1 || !strings.Contains(warnings[0], "closed, every packet takes the stack: "+why) {
			t.Errorf("warnings are %q", warnings)
		}
	})
}

// A link that comes is attached; many changes are looked at together.
func TestFastpathFollowsLinks(t *testing.T) {
	inFastpath(t, fastOn, func(t *testing.T, k *fastKeeper, kernel *fakeKernel) {
		time.Sleep(time.Minute)
		attaches := kernel.facts().attaches
		kernel.set(func() { kernel.there = []string{"eth1"} })
		for range 100 {
			k.Attach()
			time.Sleep(time.Millisecond)
		}
		time.Sleep(fastPause)
		if n := kernel.facts().attaches - attaches; n < 2 || n > 4 {
			t.Errorf("attached %d times for changes of 100 ms", n)
		}
		wantFast(t, "one has gone", k, kernel, true, true, "")
		if !slices.Equal(kernel.facts().attached, []string{"eth1"}) {
			t.Errorf("attached to %v", kernel.facts().attached)
		}
		kernel.set(func() { kernel.there = nil })
		k.Attach()
		time.Sleep(fastPause)
		wantFast(t, "all have gone", k, kernel, true, false, "no interface can take it")
		kernel.set(func() { kernel.there = []string{"eth0"} })
		k.Attach()
		time.Sleep(fastPause)
		wantFast(t, "one is back", k, kernel, true, true, "")
		if kernel.facts().loads != 1 {
			t.Errorf("loaded %d times", kernel.facts().loads)
		}
	})
}

func TestFastpathRefusedDevice(t *testing.T) {
	inFastpath(t, policy.FastpathConfig{}, func(t *testing.T, k *fastKeeper, kernel *fakeKernel) {
		kernel.set(func() { kernel.refused["eth0"] = "another XDP program is on it" })
		k.Set(fastOn)
		k.Settle(t.Context())
		wantFast(t, "one is refused", k, kernel, true, true, "")
		if warnings := k.Warnings(); len(warnings) != 1 || !strings.Contains(warnings[0], "not on eth0: another XDP program") {
			t.Errorf("warnings are %q", warnings)
		}
	})
}

// Nobody follows what changes: it is closed at once, and begun anew later.
func TestFastpathBreaks(t *testing.T) {
	inFastpath(t, fastOn, func(t *testing.T, k *fastKeeper, kernel *fakeKernel) {
		time.Sleep(time.Minute)
		kernel.broken <- errors.New("the socket broke")
		wantFast(t, "it broke", k, kernel, true, false, "the socket broke")
		if kernel.facts().closed != 1 || kernel.facts().removed != 0 {
			t.Errorf("closed %d times, removed %d", kernel.facts().closed, kernel.facts().removed)
		}
		time.Sleep(2 * fastAgain)
		wantFast(t, "it is begun anew", k, kernel, true, true, "")
	})
}

func TestFastpathReloads(t *testing.T) {
	inFastpath(t, fastOn, func(t *testing.T, k *fastKeeper, kernel *fakeKernel) {
		config := fastOn
		config.Interfaces = []string{"eth1"}
		k.Set(config)
		k.Settle(t.Context())
		wantFast(t, "other interfaces", k, kernel, true, true, "")
		if !slices.Equal(kernel.facts().attached, []string{"eth1"}) || kernel.facts().loads != 1 {
			t.Errorf("attached to %v, loaded %d times", kernel.facts().attached, kernel.facts().loads)
		}
		config.All = true
		k.Set(config)
		k.Settle(t.Context())
		wantFast(t, "all flows", k, kernel, true, true, "")
		if kernel.facts().loads != 2 || !kernel.facts().loaded.All || kernel.facts().removed != 0 || kernel.facts().closed != 1 {
			t.Errorf("loaded %d times, %+v, removed %d, closed %d", kernel.facts().loads, kernel.facts().loaded, kernel.facts().removed, kernel.facts().closed)
		}
		config.Interfaces = nil
		k.Set(config)
		k.Settle(t.Context())
		wantFast(t, "no interfaces", k, kernel, true, false, "names no interface")
	})
}

func TestFastpathForgets(t *testing.T) {
	inFastpath(t, fastOn, func(t *testing.T, k *fastKeeper, kernel *fakeKernel) {
		flow := policy.FlowKey{Proto: 6}
		k.Forget(flow)
		if !slices.Equal(kernel.facts().forgot, []policy.FlowKey{flow}) {
			t.Errorf("forgot %v", kernel.facts().forgot)
		}
	})
}

// What may be meant so does not make status degraded.
func TestFastpathAdviceIsNoWarning(t *testing.T) {
	state := sampleFastpath()
	for _, text := range fastWarnings(state) {
		if strings.Contains(text, "slower") {
			t.Errorf("status warns for ever: %s", text)
		}
	}
	if advice := fastAdvice(state); len(advice) != 1 || !strings.Contains(advice[0], "on eth1: its driver has no XDP") {
		t.Errorf("advice is %q", advice)
	}
	state.Enabled = false
	if len(fastWarnings(state))+len(fastAdvice(state)) != 0 {
		t.Error("it warns of what is switched off")
	}
}
