// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"vippin/policy"
	"vippin/test/lab"
)

// What is measured: times in ms, sizes in MiB.
const (
	stepProcess   = "process"
	stepStart     = "start"
	stepRestart   = "restart"
	stepStatus    = "status"
	stepList      = "list"
	stepOneOff    = "one off"
	stepOneOn     = "one on"
	stepAllOff    = "all off"
	stepAllOn     = "all on"
	stepUnload    = "unload"
	stepLoad      = "load"
	stepLoadAgain = "load again"
	sizeIdle      = "idle" // ms of a processor in a second
	sizeResident  = "resident"
	sizeOwn       = "own"
	sizeBPF       = "bpf"
)

// result is the figures with one number of VLANs.
type result struct {
	VLANs   int
	Figures map[string][]float64
}

// quick is how often a step that is soon done is repeated in a round.
const quick = 5

func measure(ctx context.Context, kind kind, count, rounds int) (result, error) {
	b, err := newBed(ctx, kind, count)
	if err != nil {
		return result{}, err
	}
	m := &meter{bed: b, figures: make(map[string][]float64)}
	if err = m.run(ctx, rounds); err != nil {
		err = fmt.Errorf("%w\n%s", err, b.Describe())
	}
	return result{count, m.figures}, errors.Join(err, b.Close())
}

// meter takes the figures of a bed.
type meter struct {
	*bed
	ready   *readiness
	figures map[string][]float64
}

func (m *meter) run(ctx context.Context, rounds int) (err error) {
	if m.ready, err = listenReady(m.Dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.ready.Close()) }()
	for range rounds {
		if err := m.round(ctx); err != nil {
			return err
		}
	}
	return nil
}

// round is a router's life: vippin starts, is used, restarted, unloaded, and loaded
// without a daemon.
func (m *meter) round(ctx context.Context) error {
	var daemon *lab.Proc
	err := m.timed(stepStart, func() (err error) {
		daemon, err = m.StartVippin(m.RA, m.config())
		return errors.Join(err, m.ready.await(ctx))
	})
	if err != nil {
		return err
	}
	if err := m.awaitMaster(ctx); err != nil {
		return err
	}
	for range quick {
		if err := m.use(); err != nil {
			return err
		}
	}
	if err := m.weigh(ctx, daemon.Pid()); err != nil {
		return err
	}
	if err := daemon.Stop(); err != nil {
		return err
	}
	err = m.timed(stepRestart, func() error { return errors.Join(daemon.Restart(), m.ready.await(ctx)) })
	if err != nil {
		return err
	}
	return errors.Join(daemon.Stop(),
		m.command(stepUnload, "unload"),
		m.command(stepLoad, "load", "--master"),
		m.command(stepLoadAgain, "load", "--master"),
		m.command(stepUnload, "unload"))
}

// use is what an operator does.
func (m *meter) use() error {
	one := fmt.Sprint(firstTag)
	return errors.Join(
		m.command(stepProcess, "version"),
		m.command(stepStatus, "status"),
		m.command(stepList, "pin", "ls"),
		m.command(stepOneOff, "pin", "off", one),
		m.command(stepOneOn, "pin", "on", one),
		m.command(stepAllOff, "pin", "off", m.list()),
		m.command(stepAllOn, "pin", "on", m.list()))
}

func (m *meter) timed(step string, do func() error) error {
	begun := time.Now()
	if err := do(); err != nil {
		return fmt.Errorf("%s: %w", step, err)
	}
	m.note(step, float64(time.Since(begun).Microseconds())/1000)
	return nil
}

func (m *meter) note(what string, figure float64) {
	m.figures[what] = append(m.figures[what], figure)
}

func (m *meter) command(step string, words ...string) error {
	const degraded = 3
	return m.timed(step, func() error {
		_, complaint, exit := m.Vippin(m.RA, words...)
		if exit != 0 && exit != degraded {
			return fmt.Errorf("vippin %s: exit %d: %s", strings.Join(words, " "), exit, complaint)
		}
		return nil
	})
}

func (m *meter) awaitMaster(ctx context.Context) error {
	return lab.Await(ctx, "MASTER on every VLAN", func() (bool, error) {
		out, complaint, exit := m.Vippin(m.RA, "pin", "ls", "-j")
		if exit != 0 {
			return false, errors.New(complaint)
		}
		var pins []policy.PinStatus
		if err := json.Unmarshal([]byte(out), &pins); err != nil {
			return false, fmt.Errorf("read the pins: %w", err)
		}
		return len(pins) == m.count && !slices.ContainsFunc(pins, func(pin policy.PinStatus) bool { return pin.Role != policy.RoleMaster }), nil
	})
}
