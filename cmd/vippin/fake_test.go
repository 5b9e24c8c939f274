// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vippin/loader"
	"vippin/policy"
)

var update = flag.Bool("update", false, "write testdata/*.golden anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testNow is the time of every test.
var testNow = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// golden compares with testdata/name.golden.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (run go test -update)", err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got\n%s\nwant\n%s", path, got, want)
	}
}

// rig is a command line with everything around it.
type rig struct {
	*env
	t              *testing.T
	dir            string // holds the configuration, run_dir and state_dir
	stdout, stderr lockedBuffer
	plane          *fakeDataplane // nil: nothing is loaded
	observed       policy.Observed
	vars           map[string]string
	width          int
}

const testConfig = `node: router-a
run_dir: DIR/run
state_dir: DIR/state
bpffs: /sys/fs/bpf/vippin-test
groups:
  - {name: RouterCore, vrids: [10]}
pins:
  - {vlan: 2, interface: eth0.2, vips: [198.51.100.2, "2001:db8:2::2"], group: RouterCore}
  - {vlan: 20, name: voip, interface: eth0.20, vips: [203.0.113.20], enabled: false}
`

func newRig(t *testing.T) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "vp") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &rig{t: t, dir: dir, vars: map[string]string{}, observed: testObserved()}
	b.env = &env{
		stdout: &b.stdout, stderr: &b.stderr, pid: 4711,
		getenv:    func(name string) string { return b.vars[name] },
		now:       func() time.Time { return testNow },
		monotonic: func() time.Duration { return time.Hour },
		columns:   func() int { return b.width },
		dial: func(ctx context.Context, path string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
		observe: func() (policy.Observed, error) { return b.observed, nil },
		btf:     func() bool { return true },
		open: func(string) (dataplane, error) {
			if b.plane == nil {
				return nil, loader.ErrNotLoaded
			}
			return b.plane, nil
		},
		load: func(opts loader.Options) (dataplane, error) {
			if b.plane == nil {
				b.plane = &fakeDataplane{}
			}
			b.plane.loaded = opts
			return b.plane, nil
		},
		conntrack: func(context.Context) (conntrackView, error) { return nil, nil },
	}
	b.configure(testConfig)
	return b
}

func (b *rig) configFile() string { return filepath.Join(b.dir, "vippin.yaml") }
func (b *rig) runPath() string    { return filepath.Join(b.dir, "run") }

func (b *rig) configure(text string) {
	b.t.Helper()
	text = strings.ReplaceAll(text, "DIR", b.dir)
	if err := os.WriteFile(b.configFile(), []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// run executes one command line with -c and returns what it wrote.
func (b *rig) run(args ...string) (code int, stdout, stderr string) {
	b.t.Helper()
	return b.runContext(b.t.Context(), args...)
}

func (b *rig) runContext(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	b.stdout.Reset()
	b.stderr.Reset()
	code = execute(ctx, b.env, append([]string{"-c", b.configFile()}, args...))
	return code, b.plain(b.stdout.String()), b.plain(b.stderr.String())
}

// plain takes this test's directory out of a text.
func (b *rig) plain(text string) string { return strings.ReplaceAll(text, b.dir, "DIR") }

// serve runs a daemon's control socket until the test ends.
func (b *rig) serve(control controller) {
	b.t.Helper()
	b.serveAs(control, access{self: uint32(os.Geteuid()), group: func() string { return "" }, accounts: noAccounts{}})
}

func (b *rig) serveAs(control controller, who access) {
	b.t.Helper()
	unlock, err := lockRunDir(b.t.Context(), b.runPath(), b.pid)
	if err != nil {
		b.t.Fatal(err)
	}
	listener, err := listenControl(b.runPath())
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s := &server{control: control, access: who, log: slog.New(slog.DiscardHandler)}
	go func() { done <- s.Serve(ctx, listener) }()
	b.t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			b.t.Error(err)
		}
		unlock()
	})
}

// lockedBuffer may be read while a verb writes.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

var _ io.Writer = (*lockedBuffer)(nil)

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *lockedBuffer) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Reset()
}

type noAccounts struct{}

func (noAccounts) GroupID(string) (string, error)    { return "", os.ErrNotExist }
func (noAccounts) GroupsOf(string) ([]string, error) { return nil, os.ErrNotExist }
func (noAccounts) UserName(uid string) string        { return "uid " + uid }

func testObserved() policy.Observed {
	link := func(index int, name string, vlan uint16, addrs ...string) policy.Link {
		l := policy.Link{Index: index, Name: name, Kind: "vlan", Parent: 2, VLAN: policy.VLAN{Outer: vlan}, Up: true, HasL2: true}
		for _, a := range addrs {
			l.Addrs = append(l.Addrs, policy.Addr{Prefix: netip.MustParsePrefix(a)})
		}
		return l
	}
	return policy.Observed{Links: []policy.Link{
		{Index: 2, Name: "eth0", Kind: "device", Up: true, HasL2: true},
		link(3, "eth0.2", 2, "198.51.100.3/24", "2001:db8:2::3/64"),
		link(4, "eth0.20", 20, "203.0.113.21/24"),
	}}
}

// fakeDataplane remembers what it was told.
type fakeDataplane struct {
	loaded   loader.Options
	plan     policy.Plan
	settings loader.Settings
	roles    map[uint32]policy.Role
	fixed    map[uint32]bool
	mappings []policy.Mapping
	applied  int
	swept    int
	unloaded bool
	broken   int
	closed   int
	fail     error
	stuck    uint32      // a pin that cannot be switched
	fastpath *fakeReader // nil: there is none
}

func (d *fakeDataplane) Close() error                  { d.closed++; return nil }
func (d *fakeDataplane) Tier() string                  { return "tcx" }
func (d *fakeDataplane) Planned() (policy.Plan, error) { return d.plan, nil }

func (d *fakeDataplane) Apply(plan policy.Plan) error {
	d.applied++
	d.plan = plan
	return d.fail
}

func (d *fakeDataplane) SetSettings(s loader.Settings) error { d.settings = s; return nil }

// Switch switches all, or none if one of them is stuck.
func (d *fakeDataplane) Switch(pins []policy.PlanPin) error {
	for _, pin := range pins {
		if pin.ID == d.stuck {
			return fmt.Errorf("switch pin %s: it is stuck", pin.Key())
		}
	}
	for _, pin := range pins {
		for i := range d.plan.Pins {
			if p := &d.plan.Pins[i]; p.ID == pin.ID {
				p.Enabled, p.EnabledBy = pin.Enabled, pin.EnabledBy
			}
		}
	}
	return d.fail
}

func (d *fakeDataplane) SetRole(pin uint32, role policy.Role, fixed bool) error {
	if d.roles == nil {
		d.roles, d.fixed = map[uint32]policy.Role{}, map[uint32]bool{}
	}
	d.roles[pin], d.fixed[pin] = role, fixed
	return nil
}

func (d *fakeDataplane) PinStates() ([]policy.PinState, error) {
	return planReport(d.plan, d.roles).Pins, nil
}

func (d *fakeDataplane) PinStatus() (rows []policy.PinStatus, err error) {
	states, err := d.PinStates()
	for _, state := range states {
		rows = append(rows, policy.PinStatus{PinState: state})
	}
	return rows, err
}

func (d *fakeDataplane) Flows(yield func(policy.Mapping) bool) error {
	for _, m := range d.mappings {
		if !yield(m) {
			break
		}
	}
	return nil
}

func (d *fakeDataplane) OpenFastpath() (fastReader, error) {
	if d.fastpath == nil {
		return nil, loader.ErrNotLoaded
	}
	return d.fastpath, nil
}

// fakeReader is a fast path that is only read.
type fakeReader struct {
	state policy.FastpathState
	flows map[policy.FlowKey]policy.FastpathFlow
}

func (r *fakeReader) State() (policy.FastpathState, error) { return r.state, nil }

func (r *fakeReader) Flows() (map[policy.FlowKey]policy.FastpathFlow, error) { return r.flows, nil }

func (r *fakeReader) Close() error { return nil }

func (d *fakeDataplane) Sweep() (int, error) { d.swept++; return 0, nil }

func (d *fakeDataplane) Unload(force bool) (loader.UnloadReport, error) {
	if d.broken > 0 && !force {
		return loader.UnloadReport{}, errBroken
	}
	d.unloaded = true
	return loader.UnloadReport{Converted: len(d.mappings) - d.broken, Broken: d.broken}, nil
}

// fakeController is a daemon that answers from its fields.
type fakeController struct {
	status  policy.Status
	pins    []policy.PinStatus
	vrrp    []policy.VRRPStatus
	peers   []policy.PeerReport
	flows   []policy.FlowStatus
	flowErr error // after the flows
	reload  policy.DryRun
	err     error
	hub     *eventHub
	toggled chan toggleAction

	ready       []policy.ReadyStatus
	failovers   []policy.Failover
	differences []policy.Difference
	rehearsals  []policy.Rehearsal
	notified    []policy.Notification

	fastpath policy.FastpathState
}

func (c *fakeController) Fastpath(context.Context) (policy.FastpathState, error) {
	return c.fastpath, c.err
}

func (c *fakeController) SwitchFastpath(_ context.Context, action toggleAction) (policy.FastpathState, error) {
	c.fastpath.Enabled, c.fastpath.EnabledBy = policy.DecideFastpath(action.switchOf(), c.fastpath.Enabled)
	if c.toggled != nil {
		c.toggled <- action
	}
	return c.fastpath, c.err
}

func (c *fakeController) Ready(context.Context) ([]policy.ReadyStatus, error) { return c.ready, c.err }
func (c *fakeController) Failovers(context.Context) ([]policy.Failover, error) {
	return c.failovers, c.err
}
func (c *fakeController) Parity(context.Context) ([]policy.Difference, error) {
	return c.differences, c.err
}
func (c *fakeController) Rehearse(context.Context) ([]policy.Rehearsal, error) {
	return c.rehearsals, c.err
}
func (c *fakeController) Notify(_ context.Context, n policy.Notification) error {
	c.notified = append(c.notified, n)
	return c.err
}

func (c *fakeController) Status(context.Context) (policy.Status, error)      { return c.status, c.err }
func (c *fakeController) Pins(context.Context) ([]policy.PinStatus, error)   { return c.pins, c.err }
func (c *fakeController) VRRP(context.Context) ([]policy.VRRPStatus, error)  { return c.vrrp, c.err }
func (c *fakeController) Peers(context.Context) ([]policy.PeerReport, error) { return c.peers, c.err }
func (c *fakeController) Reload(context.Context) (policy.DryRun, error)      { return c.reload, c.err }

func (c *fakeController) Flows(_ context.Context, yield func(policy.FlowStatus) error) error {
	for _, f := range c.flows {
		if err := yield(f); err != nil {
			return err
		}
	}
	return c.flowErr
}

func (c *fakeController) Events(ctx context.Context) <-chan policy.Event { return c.hub.Subscribe(ctx) }

func (c *fakeController) Toggle(_ context.Context, action toggleAction, selectors []policy.Selector) ([]policy.PinState, error) {
	matched, unknown := policy.Select(selectors, statesIn(c.pins))
	if len(unknown) > 0 {
		return nil, &unknownPinsError{Unknown: unknown}
	}
	if c.toggled != nil {
		c.toggled <- action
	}
	for i := range matched {
		matched[i].Enabled = action == toggleOn
		matched[i].EnabledBy = policy.EnabledByToggle
	}
	return matched, c.err
}

func statesIn(rows []policy.PinStatus) (states []policy.PinState) {
	for _, row := range rows {
		states = append(states, row.PinState)
	}
	return states
}

// count says how many are watching.
func (h *eventHub) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.readers)
}
