// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vippin/policy"
)

// ask sends one request as curl would.
func (b *rig) ask(method, path, body string) (code int, answer failure) {
	b.t.Helper()
	c := newClient(b.env, b.runPath())
	request, err := http.NewRequestWithContext(b.t.Context(), method, "http://vippin"+path, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	response, err := c.http.Do(request)
	if err != nil {
		b.t.Fatal(err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	_ = json.Unmarshal(data, &answer) // lists have no error
	return response.StatusCode, answer
}

func TestServerAnswers(t *testing.T) {
	b := newRig(t)
	control := sampleController()
	control.toggled = make(chan toggleAction, 1)
	b.serve(control)
	long := `{"vlans":"` + strings.Repeat("2,", maxRequestBody) + `2"}`
	cases := []struct {
		method, path, body string
		code               int
		error              string
	}{
		{"GET", "/v1/status", "", 200, ""},
		{"GET", "/v1/pins", "", 200, ""},
		{"GET", "/v1/vrrp", "", 200, ""},
		{"GET", "/v1/peers", "", 200, ""},
		{"GET", "/v1/flows", "", 200, ""},
		{"POST", "/v1/status", "", 405, ""},
		{"GET", "/v1/nothing", "", 404, ""},
		{"POST", "/v1/reload", "", 200, ""},
		{"GET", "/v1/reload", "", 405, ""},
		{"POST", "/v1/pins/on", `{"vlans":"2"}`, 200, ""},
		{"POST", "/v1/pins/flip", `{"vlans":"2"}`, 404, "unknown toggle"},
		{"POST", "/v1/pins/on", `{"vlans":"2,30"}`, 404, "no pin for 30"},
		{"POST", "/v1/pins/on", `{"vlans":""}`, 400, "empty"},
		{"POST", "/v1/pins/on", `{"vlans":"2"} {}`, 400, "more than one"},
		{"POST", "/v1/pins/on", `{"vlan":"2"}`, 400, "unknown field"},
		{"POST", "/v1/pins/on", `nonsense`, 400, "read request"},
		{"POST", "/v1/pins/on", ``, 400, "read request"},
		{"POST", "/v1/pins/on", long, 400, "too large"},
	}
	for _, c := range cases {
		code, answer := b.ask(c.method, c.path, c.body)
		if code != c.code || !strings.Contains(answer.Error, c.error) {
			t.Errorf("%s %s %.20s: %d %q, want %d %q", c.method, c.path, c.body, code, answer.Error, c.code, c.error)
		}
	}
	if _, answer := b.ask("POST", "/v1/pins/on", `{"vlans":"2,30,31"}`); fmt.Sprint(answer.Unknown) != "[30 31]" {
		t.Errorf("unknown: %v", answer.Unknown)
	}
	if action := <-control.toggled; action != toggleOn {
		t.Errorf("toggled %s", action)
	}
	select {
	case action := <-control.toggled:
		t.Errorf("a refused request toggled %s", action)
	default:
	}
	control.err = errors.New("the map is gone")
	if code, answer := b.ask("GET", "/v1/pins", ""); code != 500 || answer.Error != "the map is gone" {
		t.Errorf("%d %q", code, answer.Error)
	}
}

// fakeAccounts has one group, 400 "vippin", and user 1000 in it.
type fakeAccounts struct{}

func (fakeAccounts) GroupID(name string) (string, error) {
	if name == "vippin" {
		return "400", nil
	}
	return "", errors.New("unknown group")
}

func (fakeAccounts) GroupsOf(uid string) ([]string, error) {
	switch uid {
	case "1000":
		return []string{"100", "400"}, nil
	case "1001":
		return []string{"100"}, nil
	}
	return nil, errors.New("unknown user")
}

func (fakeAccounts) UserName(uid string) string { return "user" + uid }

func TestWhoMayChange(t *testing.T) {
	cases := []struct {
		name  string
		who   caller
		group string
		may   bool
	}{
		{"root", caller{pid: 1}, "vippin", true},
		{"the daemon's user", caller{pid: 1, uid: 77, gid: 77}, "vippin", true},
		{"a member", caller{pid: 1, uid: 1000, gid: 100}, "vippin", true},
		{"who runs with the group", caller{pid: 1, uid: 1002, gid: 400}, "vippin", true},
		{"not a member", caller{pid: 1, uid: 1001, gid: 100}, "vippin", false},
		{"a user nobody knows", caller{pid: 1, uid: 1003, gid: 100}, "vippin", false},
		{"a group nobody knows", caller{pid: 1, uid: 1000, gid: 400}, "wheel", false},
		{"no group", caller{pid: 1, uid: 1000, gid: 400}, "", false},
		{"no credentials", caller{}, "vippin", false},
		{"failed credentials", caller{pid: 1, err: errors.New("lost")}, "vippin", false},
	}
	for _, c := range cases {
		a := access{self: 77, group: func() string { return c.group }, accounts: fakeAccounts{}}
		err := a.mayChange(context.WithValue(t.Context(), callerKey{}, c.who))
		if (err == nil) != c.may {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if (access{group: func() string { return "vippin" }, accounts: fakeAccounts{}}).mayChange(t.Context()) == nil {
		t.Error("who came without credentials may change things")
	}
}

// TestRefusedChange goes through a real socket, as a user that the daemon does
// not trust: the kernel says who that is.
func TestRefusedChange(t *testing.T) {
	b := newRig(t)
	if os.Geteuid() == 0 {
		b.dialAs(1001)
	}
	control := sampleController()
	b.serveAs(control, access{self: uint32(os.Geteuid()) + 1, group: func() string { return "vippin" }, accounts: fakeAccounts{}})
	for _, args := range []string{"pin on 2", "fastpath off", "reload"} {
		code, _, stderr := b.run(strings.Fields(args)...)
		if code != exitFailed || !strings.Contains(stderr, "may look but not change") || !strings.Contains(stderr, "control.group") {
			t.Errorf("%s: exit code %d, %q", args, code, stderr)
		}
	}
	for _, noun := range []string{"pin", "fastpath"} {
		if code, _, stderr := b.run(noun, "ls"); code != exitDone {
			t.Errorf("looking is refused: %s", stderr)
		}
	}
}

// dialAs connects as another user. The kernel notes the effective user of the
// thread that connects (unix(7)).
func (b *rig) dialAs(uid uintptr) {
	b.t.Helper()
	if err := os.Chmod(b.dir, 0o755); err != nil {
		b.t.Fatal(err)
	}
	dial, keep := b.dial, ^uintptr(0)
	b.dial = func(ctx context.Context, path string) (net.Conn, error) {
		runtime.LockOSThread()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uid, keep); errno != 0 {
			return nil, errno
		}
		conn, err := dial(ctx, path)
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, 0, keep); errno != 0 {
			return nil, errno // the thread stays locked and ends
		}
		runtime.UnlockOSThread()
		return conn, err
	}
}

func TestSocketOfADeadDaemon(t *testing.T) {
	b := newRig(t)
	if err := os.MkdirAll(b.runPath(), 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(b.runPath(), socketName)
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false) // as after kill -9
	dead.Close()
	if code, _, stderr := b.run("status"); code != exitFailed || !strings.Contains(stderr, "no daemon runs") {
		t.Errorf("exit code %d, %q", code, stderr)
	}
	b.serve(sampleController())
	if code, _, stderr := b.run("pin", "ls"); code != exitDone {
		t.Error(stderr)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	var running *runningError
	if _, err := lockRunDir(t.Context(), b.runPath(), 1); !errors.As(err, &running) || running.PID != 4711 {
		t.Errorf("a second daemon got the lock: %v", err)
	}
}

func TestSocketIsRemovedAtTheEnd(t *testing.T) {
	b := newRig(t)
	t.Run("daemon", func(t *testing.T) {
		b.t = t
		b.serve(sampleController())
	})
	if _, err := os.Stat(filepath.Join(b.runPath(), socketName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

// TestFlowsCutShort: a list that is not whole is a failure.
func TestFlowsCutShort(t *testing.T) {
	b := newRig(t)
	control := sampleController()
	control.flowErr = errors.New("the map is gone")
	b.serve(control)
	code, stdout, stderr := b.run("flows", "-j")
	if code != exitFailed || strings.Count(stdout, "\n") != 2 || !strings.Contains(stderr, "the map is gone") {
		t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
	}
	control.flows = nil // the failure comes before the first line
	code, _, stderr = b.run("flows")
	if code != exitFailed || !strings.Contains(stderr, "the map is gone") {
		t.Errorf("exit code %d, %q", code, stderr)
	}
}

// TestManyFlows crosses batches of the table and buffers of the socket.
func TestManyFlows(t *testing.T) {
	b := newRig(t)
	control := sampleController()
	for range 3 * flowBatch {
		control.flows = append(control.flows, sampleFlows()...)
	}
	b.serve(control)
	code, stdout, stderr := b.run("flows")
	if want := len(control.flows) + 1; code != exitDone || strings.Count(stdout, "\n") != want {
		t.Errorf("exit code %d, %d lines, want %d: %s", code, strings.Count(stdout, "\n"), want, stderr)
	}
}

// TestDaemonLeaves ends a monitor when the daemon ends.
func TestDaemonLeaves(t *testing.T) {
	b := newRig(t)
	control := sampleController()
	code := make(chan int, 1)
	t.Run("daemon", func(t *testing.T) {
		b.t = t
		b.serve(control)
		go func() { c, _, _ := b.runContext(context.Background(), "monitor"); code <- c }()
		waitFor(t, func() bool { return control.hub.count() == 1 })
	})
	if c := <-code; c != exitFailed || !strings.Contains(b.stderr.String(), "the daemon has ended") {
		t.Errorf("exit code %d, %q", c, b.stderr.String())
	}
	waitFor(t, func() bool { return control.hub.count() == 0 })
}

// TestSlowReader connects and never reads: publishing must not wait, and a
// reader that comes back learns how much it has lost.
func TestSlowReader(t *testing.T) {
	hub := newEventHub(func() time.Time { return testNow })
	ctx, stop := context.WithCancel(t.Context())
	events := hub.Subscribe(ctx)
	const published = 3 * eventBacklog
	for i := range published {
		hub.Publish(policy.Event{Kind: "pin", Detail: fmt.Sprint(i)})
	}
	for i := range eventBacklog {
		if e := <-events; e.Detail != fmt.Sprint(i) || !e.Time.Equal(testNow) {
			t.Fatalf("event %d: %+v", i, e)
		}
	}
	hub.Publish(policy.Event{Kind: "pin", Detail: "again"})
	lost := <-events
	if lost.Kind != eventLost || !strings.HasPrefix(lost.Detail, fmt.Sprintf("lost %d ", published-eventBacklog)) {
		t.Errorf("%+v", lost)
	}
	if e := <-events; e.Detail != "again" {
		t.Errorf("%+v", e)
	}
	stop()
	if e, open := <-events; open {
		t.Errorf("still open: %+v", e)
	}
	hub.Publish(policy.Event{}) // nobody is there
}

// TestConnectionsThatSayNothing do not keep the daemon from ending.
func TestConnectionsThatSayNothing(t *testing.T) {
	b := newRig(t)
	var conn net.Conn
	var began time.Time
	t.Run("daemon", func(t *testing.T) {
		b.t = t
		b.serve(sampleController())
		began = time.Now()
		var err error
		if conn, err = net.Dial("unix", filepath.Join(b.runPath(), socketName)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("GET /v1/sta")); err != nil {
			t.Fatal(err)
		}
		if code, _, stderr := b.run("pin", "ls"); code != exitDone {
			t.Error(stderr)
		}
	})
	defer conn.Close()
	if took := time.Since(began); took >= 5*time.Second { // net/http ends them then, Close or not
		t.Errorf("ending took %s", took)
	}
}

// answerWith stands in for a daemon that gives one canned answer.
func (b *rig) answerWith(answer string) {
	b.dial = func(context.Context, string) (net.Conn, error) {
		here, there := net.Pipe()
		go func() {
			defer there.Close()
			var request bytes.Buffer
			for !strings.HasSuffix(request.String(), "\r\n\r\n") {
				if _, err := io.CopyN(&request, there, 1); err != nil {
					return
				}
			}
			fmt.Fprint(there, answer)
		}()
		return here, nil
	}
}

func TestStrangeAnswers(t *testing.T) {
	for _, c := range []struct{ args, answer, stderr string }{
		{"status", "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "another version"},
		{"flows", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "before the list of flows was whole"},
		{"flows", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{}", "EOF"},
		{"flows", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwhat", "read a flow"},
		{"pin ls", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "read the daemon's answer"},
		{"pin ls", "no HTTP at all\r\n", "ask the daemon"},
		{"reload", "", "ask the daemon"},
	} {
		b := newRig(t)
		b.answerWith(c.answer)
		code, _, stderr := b.run(strings.Fields(c.args)...)
		if code != exitFailed || !strings.Contains(stderr, c.stderr) {
			t.Errorf("%s, %q: exit code %d, %q", c.args, c.answer, code, stderr)
		}
	}
}
