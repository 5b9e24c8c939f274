// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// spins is childMode of a process with many threads at work.
const spins = "spins"

func spin() {
	fmt.Println("ready")
	for range 8 {
		go func() {
			for work := 0; ; {
				work++
			}
		}()
	}
	select {}
}

// Once SIGSTOP has been sent no thread does anything any more.
func TestStoppedStandsStill(t *testing.T) {
	l := ForTest(t, "still", Options{Hosts: 1, SingleRouter: true})
	p, err := l.RA.Start(l.Dir, "spins", []string{childMode + "=" + spins, "GOMAXPROCS=8"}, os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AwaitLog(testContext(t), "ready"); err != nil {
		t.Fatal(err)
	}
	for range 30 {
		if err := p.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.Pid()))
		if err != nil || len(threads) < 2 {
			t.Fatalf("threads %q, %v, want several", threads, err)
		}
		for _, thread := range threads {
			stat, err := os.ReadFile(thread)
			if _, state, _ := bytes.Cut(stat, []byte(") ")); err != nil || !bytes.HasPrefix(state, []byte("T ")) {
				t.Fatalf("%s: %s%v, want the state T", thread, stat, err)
			}
		}
		if err := p.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Kill9(); err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(syscall.SIGSTOP); err == nil {
		t.Error("a process that has ended was stopped")
	}
}
