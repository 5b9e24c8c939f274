// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// childMode is how the tests start this program again, as a process that
// builds a lab and is killed with it.
const childMode = "VIPPIN_LAB_CHILD"

// child builds a lab with keepalived running, says so, and waits for its end.
func child() int {
	err := Guard(func(ctx context.Context) error {
		l, err := New(ctx, "child", Options{Hosts: 1})
		if err != nil {
			return err
		}
		if err := l.StartRouters(ctx, Keepalived{IPv4Only: true}); err != nil {
			return err
		}
		fmt.Println("ready")
		<-ctx.Done()
		return nil
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// startChild returns the running process and its prefix.
func startChild(t *testing.T) (*exec.Cmd, string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childMode+"=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != "ready" {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		t.Fatalf("the child said %q (%v)", line, err)
	}
	return cmd, fmt.Sprintf("vp%d-", cmd.Process.Pid)
}

// remains lists everything on this machine that carries a prefix.
func remains(t *testing.T, prefix string) []string {
	t.Helper()
	var found []string
	for _, dir := range []string{netnsRoot, bpfRoot, os.TempDir()} {
		matches, err := filepath.Glob(filepath.Join(dir, prefix+"*"))
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, matches...)
	}
	pids, err := processes(func(pid int) bool {
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		return err == nil && strings.Contains(string(cmdline), "/"+prefix)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		found = append(found, fmt.Sprintf("process %d", pid))
	}
	return found
}

// isZombie says that a process is dead and only waits to be reaped.
func isZombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

func TestCloseRemovesEverything(t *testing.T) {
	l := ForTest(t, "close", Options{Hosts: 1, ThirdRouter: true})
	if err := l.StartRouters(testContext(t), Keepalived{}); err != nil {
		t.Fatal(err)
	}
	// A process that has left the process group and that nobody waits for.
	if _, err := l.Hosts[0].Start(l.Dir, "stray", nil, "sh", "-c", "setsid sh -c 'sleep 60 & sleep 60 & wait' & wait"); err != nil {
		t.Fatal(err)
	}
	mine := prefix() + "close-"
	if err := mountBPFFS(); err != nil {
		t.Fatal(err)
	}
	for _, r := range l.Routers() { // what a vippin would leave
		if err := os.MkdirAll(r.BPFFS, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if found := remains(t, mine); len(found) < 8 {
		t.Fatalf("a running lab shows only %v", found)
	}
	group := l.RA.Keepalived().Pid()
	var strays []int
	if err := Await(t.Context(), "the stray processes", func() (bool, error) {
		pids, err := livingInside(l.Hosts[0].NS)
		strays = pids
		return len(pids) >= 3, err
	}); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, pid := range strays {
		if err := syscall.Kill(pid, 0); err == nil && !isZombie(pid) {
			t.Errorf("stray process %d lives", pid)
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	if found := remains(t, mine); len(found) > 0 {
		t.Errorf("left over: %v", found)
	}
	if living, err := livingInGroup(group); err != nil || len(living) > 0 {
		t.Errorf("keepalived lives: %v (%v)", living, err)
	}
	if _, err := l.RA.Start(os.TempDir(), "late", nil, "true"); err == nil {
		t.Error("a closed lab started a process")
	}
	os.Remove(filepath.Join(os.TempDir(), "late.log"))
}

// A lab that fails half-way leaves nothing.
func TestFailedNewLeavesNothing(t *testing.T) {
	if err := Root(); err != nil {
		t.Skip(err)
	}
	_, err := New(t.Context(), "fails", Options{Offloads: "sideways"})
	if err == nil || !strings.Contains(err.Error(), "sideways") {
		t.Fatalf("New with nonsense: %v", err)
	}
	if found := remains(t, prefix()+"fails-"); len(found) > 0 {
		t.Errorf("left over: %v", found)
	}
}

func TestSignalRemovesEverything(t *testing.T) {
	if err := Root(); err != nil {
		t.Skip(err)
	}
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		cmd, prefix := startChild(t)
		if found := remains(t, prefix); len(found) < 8 {
			t.Errorf("a running lab shows only %v", found)
		}
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("after %s: %v", signal, err)
		}
		if found := remains(t, prefix); len(found) > 0 {
			t.Errorf("left over after %s: %v", signal, found)
		}
	}
}

// SIGKILL leaves namespaces and files, which the next process's Reap removes;
// it leaves those of the living alone.
func TestReapRemovesWhatTheDeadLeft(t *testing.T) {
	if err := Root(); err != nil {
		t.Skip(err)
	}
	l := ForTest(t, "living", Options{Hosts: 1, SingleRouter: true})
	cmd, dead := startChild(t)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if found := remains(t, dead); len(found) < 6 {
		t.Fatalf("SIGKILL left only %v: nothing to reap", found)
	}
	if err := Reap(); err != nil {
		t.Fatal(err)
	}
	if err := Await(t.Context(), "the end of the killed processes", func() (bool, error) {
		return len(remains(t, dead)) == 0, nil
	}); err != nil {
		t.Errorf("%v: left over: %v", err, remains(t, dead))
	}
	if _, err := l.Hosts[0].Run(testContext(t), "ip", "route", "get", ServerWAN.V4.String()); err != nil {
		t.Errorf("Reap removed a living lab: %v", err)
	}
}
