// SPDX-License-Identifier: Apache-2.0

//go:build vmsmoke

package smoke

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

const (
	wanTag = 2
	lanTag = 20
	wan    = "eth0.2"  // the router's outside interface
	lan    = "eth0.20" // its inside interface
)

// family is one address family's numbers in the lab.
type family struct {
	name, server, unique, vip string
}

var families = []family{
	{"IPv4", "198.51.100.10", "198.51.100.3", "198.51.100.2"},
	{"IPv6", "2001:db8:2::10", "2001:db8:2::3", "2001:db8:2::2"},
}

// lab is an inside host, a router on a stick and an outside server:
//
//	host trunk.20 --\                     /-- eth0.20 (inside)
//	                 trunk ======== eth0 <           router, masquerading
//	server trunk.2 -/     802.1Q          \-- eth0.2  (outside, unique .3, VIP .2)
type lab struct {
	host, router, server *namespace
	noBTF                bool   // hide BTF from the program
	vippin               string // the program
	config               string // its file
	env                  []string

	daemon   *exec.Cmd // nil: none runs
	log      bytes.Buffer
	unloaded bool
}

// newLab builds it, masquerading.
func newLab(t *testing.T) *lab {
	t.Helper()
	l := newBareLab(t)
	l.masquerade(t)
	return l
}

// newBareLab is newLab without any rule, and so without conntrack.
func newBareLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{
		host:   newNamespace(t, "host"),
		router: newNamespace(t, "router"),
		server: newNamespace(t, "server"),
	}
	wire := newNamespace(t, "wire")
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "trunk", PeerNamespace: netlink.NsFd(wire.fd)}
	if err := l.router.LinkAdd(veth); err != nil {
		t.Fatalf("make the trunk: %v", err)
	}
	l.router.up(t, "eth0")
	wire.up(t, "trunk")
	l.router.vlanOn(t, "eth0", wanTag, nil)
	l.router.vlanOn(t, "eth0", lanTag, nil)
	outside := wire.vlanOn(t, "trunk", wanTag, l.server)
	inside := wire.vlanOn(t, "trunk", lanTag, l.host)

	l.router.sysctl(t, "ipv4/ip_forward", "1")
	l.router.sysctl(t, "ipv6/conf/all/forwarding", "1")
	l.router.addr(t, wan, "198.51.100.3/24", "2001:db8:2::3/64", "198.51.100.2/32", "2001:db8:2::2/128")
	l.router.addr(t, lan, "192.168.20.1/24", "2001:db8:20::1/64")
	l.host.addr(t, inside, "192.168.20.10/24", "2001:db8:20::10/64")
	l.host.defaultRoutes(t, "192.168.20.1", "2001:db8:20::1")
	l.server.addr(t, outside, "198.51.100.10/24", "2001:db8:2::10/64")
	return l
}

// masquerade adds the rule that everything else here is about.
func (l *lab) masquerade(t *testing.T) {
	t.Helper()
	l.router.must(t, func() error {
		return run("nft", `table inet smoke {
			chain out { type nat hook postrouting priority srcnat; oifname "`+wan+`" masquerade; }
		}`)
	})
}

// run runs a program of the system; nft gets its rules as its last argument.
func run(name string, args ...string) error {
	_, err := output(name, args...)
	return err
}

// output is run for what prints something.
func output(name string, args ...string) (string, error) {
	said, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("run %s: %w: %s", name, err, said)
	}
	return string(said), nil
}

// start configures the daemon and runs it until the test ends.
func (l *lab) start(t *testing.T, config string) {
	t.Helper()
	l.configure(t, config)
	l.launch(t)
	t.Cleanup(func() { l.stop(t) })
}

// configure writes the configuration, which gets directories of its own.
func (l *lab) configure(t *testing.T, config string) {
	t.Helper()
	if l.vippin = os.Getenv("VIPPIN_BIN"); l.vippin == "" {
		t.Fatal("VIPPIN_BIN is not set: it names the vippin program to test")
	}
	dir := t.TempDir()
	if l.noBTF {
		script := `#!/bin/sh
exec unshare --mount sh -c 'mount -t tmpfs none /sys/kernel/btf && exec "$@"' no-btf "` + l.vippin + `" "$@"
`
		l.vippin = filepath.Join(dir, "vippin-no-btf")
		if err := os.WriteFile(l.vippin, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	l.config = filepath.Join(dir, "vippin.yaml")
	l.env = append(os.Environ(), "VIPPIN_RUN_DIR="+filepath.Join(dir, "run"))
	config += fmt.Sprintf("\nnode: smoke\nrun_dir: %s/run\nstate_dir: %s/state\nmetrics: {listen: \"127.0.0.1:9407\"}\n", dir, dir)
	if err := os.WriteFile(l.config, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
}

// launch runs the daemon, once more after end.
func (l *lab) launch(t *testing.T) {
	t.Helper()
	daemon := exec.Command(l.vippin, "run", "-c", l.config)
	daemon.Env, daemon.Stdout, daemon.Stderr = l.env, &l.log, &l.log
	l.router.must(t, daemon.Start)
	l.daemon = daemon
}

// awaitDaemon waits until the daemon answers, and nothing is wrong.
func (l *lab) awaitDaemon(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		said, code := l.call("status")
		if code == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("status: exit %d after a minute: %s", code, said)
		}
	}
}

// end ends the daemon, if it runs.
func (l *lab) end(t *testing.T) {
	t.Helper()
	if l.daemon == nil {
		return
	}
	_ = l.daemon.Process.Signal(syscall.SIGTERM) // it may have died: Wait tells
	timer := time.AfterFunc(20*time.Second, func() { _ = l.daemon.Process.Kill() })
	err := l.daemon.Wait()
	if !timer.Stop() || err != nil {
		t.Errorf("the daemon did not end in order: %v", err)
	}
	l.daemon = nil
}

// stop ends the daemon and takes its programs out of the kernel.
func (l *lab) stop(t *testing.T) {
	l.end(t)
	if !l.unloaded {
		if out, code := l.call("unload", "-c", l.config, "--force"); code != 0 {
			t.Errorf("vippin unload: exit %d: %s", code, out)
		}
	}
	if t.Failed() {
		t.Logf("the daemon said:\n%s", &l.log)
	}
}

// unload has the living flows handed over to conntrack.
func (l *lab) unload(t *testing.T) string {
	t.Helper()
	l.end(t)
	said := l.verb(t, "unload", "-c", l.config)
	l.unloaded = true
	return said
}

// call runs a verb inside the router and returns what it printed, and how it
// ended.
func (l *lab) call(args ...string) (said string, exitCode int) {
	cmd := exec.Command(l.vippin, args...)
	var out, complaint bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr = l.env, &out, &complaint
	err := l.router.do(cmd.Run)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return out.String(), 0
	case errors.As(err, &exit):
		return out.String() + complaint.String(), exit.ExitCode()
	}
	return err.Error(), -1
}

// verb is call for what must succeed.
func (l *lab) verb(t *testing.T, args ...string) string {
	t.Helper()
	said, code := l.call(args...)
	if code != 0 {
		t.Fatalf("vippin %s: exit %d: %s", strings.Join(args, " "), code, said)
	}
	return said
}

// pinRow is what the tests read of "pin ls -j".
type pinRow struct {
	VLAN          int      `json:"vlan"`
	Interface     string   `json:"interface"`
	VIPs          []string `json:"vips"`
	Enabled       bool     `json:"enabled"`
	EnabledBy     string   `json:"enabled_by"`
	Role          string   `json:"role"`
	Flows         int      `json:"flows"`
	PacketsPinned int      `json:"packets_pinned"`
}

// pins asks "pin ls -j".
func (l *lab) pins() ([]pinRow, error) {
	said, code := l.call("pin", "ls", "-j")
	if code != 0 {
		return nil, fmt.Errorf("vippin pin ls -j: exit %d: %s", code, said)
	}
	var rows []pinRow
	if err := json.Unmarshal([]byte(said), &rows); err != nil {
		return nil, fmt.Errorf("read pin ls -j %q: %w", said, err)
	}
	return rows, nil
}

// awaitPin waits until the one pin is there and as wanted.
func (l *lab) awaitPin(t *testing.T, what string, wanted func(pinRow) bool) pinRow {
	t.Helper()
	var rows []pinRow
	var err error
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if rows, err = l.pins(); err == nil && len(rows) == 1 && wanted(rows[0]) {
			return rows[0]
		}
	}
	t.Fatalf("no pin that is %s after a minute: %+v, %v", what, rows, err)
	return pinRow{}
}
