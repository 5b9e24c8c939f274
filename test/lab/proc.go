// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stopTimeout is how long a process may take to end after SIGTERM.
var stopTimeout = Slowly(10 * time.Second)

// Proc is a long-running process inside a node. It leads a process group of
// its own, gets SIGKILL when the lab's process dies, and writes to a log file.
type Proc struct {
	Name    string
	LogFile string // stdout and stderr of every run, appended

	node    *Node
	argv    []string
	env     []string
	prepare func() error // before every start, nil for nothing

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has ended
	err  error         // of the ended cmd
}

// Start starts a process inside the node. Its log is NAME.log in dir; env is
// added to this process's environment.
func (n *Node) Start(dir, name string, env []string, argv ...string) (*Proc, error) {
	p := &Proc{Name: name, LogFile: filepath.Join(dir, name+".log"), node: n, argv: argv, env: env}
	return p, p.launch()
}

// launch starts the process for the first time and has Close kill it.
func (p *Proc) launch() error {
	if err := p.start(); err != nil {
		return err
	}
	l := p.node.lab
	l.mu.Lock()
	defer l.mu.Unlock()
	l.procs = append(l.procs, p)
	return nil
}

func (p *Proc) start() error {
	if p.prepare != nil {
		if err := p.prepare(); err != nil {
			return err
		}
	}
	log, err := os.OpenFile(p.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", p.Name, err)
	}
	defer log.Close()
	cmd := exec.Command(p.argv[0], p.argv[1:]...)
	cmd.Env = append(os.Environ(), p.env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	if err := p.node.lab.onSpawner(func() error { return p.node.Do(cmd.Start) }); err != nil {
		return fmt.Errorf("start %s in %s: %w", p.Name, p.node.NS, err)
	}
	done := make(chan struct{})
	p.mu.Lock()
	p.cmd, p.done, p.err = cmd, done, nil
	p.mu.Unlock()
	go func() {
		err := cmd.Wait()
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
		close(done)
	}()
	return nil
}

// Pid is the process's id; it stays the last one after the process's end.
func (p *Proc) Pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd.Process.Pid
}

// Done is closed when the running process has ended; a restart makes another.
func (p *Proc) Done() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done
}

// Alive says whether the process is running.
func (p *Proc) Alive() bool {
	select {
	case <-p.Done():
		return false
	default:
		return true
	}
}

// Err is how the process ended: nil while it runs and after exit status 0.
func (p *Proc) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// Signal sends a signal to the process alone, not to its children. After SIGSTOP it
// waits until all of the process stands still: a thread that has not met the signal yet
// goes on.
func (p *Proc) Signal(signal syscall.Signal) error {
	if !p.Alive() {
		return fmt.Errorf("signal %s in %s: it has ended (%v); see its log:\n%s", p.Name, p.node.NS, p.Err(), p.logTail())
	}
	if err := syscall.Kill(p.Pid(), signal); err != nil {
		return fmt.Errorf("send %s to %s in %s: %w", signal, p.Name, p.node.NS, err)
	}
	if signal != syscall.SIGSTOP {
		return nil
	}
	for {
		err := unix.Waitid(unix.P_PID, p.Pid(), nil, unix.WSTOPPED|unix.WEXITED|unix.WNOWAIT, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("wait until %s in %s stands still: %w", p.Name, p.node.NS, err)
		}
		return nil
	}
}

// Kill9 kills the process and its children at one blow, as a crash would, and
// waits for their end. It does nothing when the process has ended.
func (p *Proc) Kill9() error {
	if !p.Alive() {
		return nil
	}
	group := p.Pid()
	if err := syscall.Kill(-group, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill %s in %s: %w", p.Name, p.node.NS, err)
	}
	<-p.Done()
	return awaitEnd(func() ([]int, error) { return livingInGroup(group) })
}

// Stop sends SIGTERM and waits for the end; a process that does not end in
// time is killed, which is an error.
func (p *Proc) Stop() error {
	if !p.Alive() {
		return nil
	}
	if err := p.Signal(syscall.SIGTERM); err != nil && p.Alive() {
		return err
	}
	select {
	case <-p.Done():
		return nil
	case <-time.After(stopTimeout):
		return errors.Join(
			fmt.Errorf("stop %s in %s: still there %s after SIGTERM; see its log:\n%s", p.Name, p.node.NS, stopTimeout, p.logTail()),
			p.Kill9())
	}
}

// Restart stops the process if it runs, and starts it again in the same way.
func (p *Proc) Restart() error {
	if err := p.Stop(); err != nil {
		return err
	}
	return p.start()
}

// Log returns what the process has written.
func (p *Proc) Log() string {
	text, err := os.ReadFile(p.LogFile)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

func (p *Proc) logTail() string {
	lines := strings.Split(strings.TrimSpace(p.Log()), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// AwaitLog waits until the log contains a text. It fails at once when the
// process ends without having written it.
func (p *Proc) AwaitLog(ctx context.Context, text string) error {
	return p.await(ctx, fmt.Sprintf("%q in its log", text), func() (bool, error) {
		return strings.Contains(p.Log(), text), nil
	})
}

// await is Await for something the process is to bring about.
func (p *Proc) await(ctx context.Context, what string, holds func() (bool, error)) error {
	return Await(ctx, fmt.Sprintf("%s of %s: %s", p.Name, p.node.NS, what), func() (bool, error) {
		alive := p.Alive() // first: what it did before its end counts
		if ok, err := holds(); ok || err != nil {
			return ok, err
		}
		if !alive {
			return false, fmt.Errorf("%s in %s has ended (%v); its log:\n%s", p.Name, p.node.NS, p.Err(), p.logTail())
		}
		return false, nil
	})
}

// forget takes the process off the list of what Close has to kill.
func (p *Proc) forget() {
	l := p.node.lab
	l.mu.Lock()
	defer l.mu.Unlock()
	l.procs = slices.DeleteFunc(l.procs, func(other *Proc) bool { return other == p })
}
