// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// standIn does as little of vippin's command line as the lab relies on.
const standIn = `#!/bin/sh
case "$3" in
run)
	trap 'echo stopped; exit 0' TERM
	echo "running with $2 in $VIPPIN_RUN_DIR"
	mkdir -p "$VIPPIN_RUN_DIR" && : > "$VIPPIN_RUN_DIR/control.sock"
	while :; do sleep 0.02; done ;;
monitor)
	echo "monitor of $2"
	sleep 60 ;;
status) echo '{}'; exit 3 ;;
config) cat "$2" ;;
links) ls /sys/class/net >/dev/null; ip -br link show dev wan0 ;;
*) echo "$3: no such thing" >&2; exit 2 ;;
esac
`

// The lab's way to run vippin, tried with a stand-in so that it does not depend
// on vippin itself.
func TestVippinRunsInTheRouter(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "vippin")
	// "run -c FILE" as the lab starts the daemon: put it into the same order.
	script := strings.Replace(standIn, "case", `[ "$1" = run ] && set -- "$2" "$3" run`+"\ncase", 1)
	if err := os.WriteFile(bin, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	l := ForTest(t, "vippin", Options{Hosts: 1, VippinBin: bin})
	ctx := testContext(t)
	p, err := l.StartVippin(l.RB, "pins: []\n")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.AwaitVippin(ctx, l.RB); err != nil {
		t.Fatal(err)
	}
	if err := p.AwaitLog(ctx, "running with "+l.RB.ConfigFile()+" in "+l.RB.RunDir()); err != nil {
		t.Fatal(err)
	}
	config, _, exit := l.Vippin(l.RB, "config")
	for _, line := range []string{"node: rb\n", "bpffs: " + l.RB.BPFFS + "\n", "state_dir: " + l.RB.StateDir() + "\n", "pins: []\n"} {
		if exit != 0 || !strings.Contains(config, line) {
			t.Errorf("the configuration lacks %q: exit %d, %s", line, exit, config)
		}
	}
	if out, complaint, exit := l.Vippin(l.RB, "links"); exit != 0 || !strings.Contains(out, "wan0") {
		t.Errorf("not inside the router: exit %d, %s%s", exit, out, complaint)
	}
	if _, complaint, exit := l.Vippin(l.RB, "dance"); exit != 2 || !strings.Contains(complaint, "dance") {
		t.Errorf("an unknown verb: exit %d, %q", exit, complaint)
	}
	watch, err := l.StartCommand(l.RB, "monitor")
	if err != nil {
		t.Fatal(err)
	}
	if err := watch.AwaitLog(ctx, "monitor of "+l.RB.ConfigFile()); err != nil || !watch.Alive() {
		t.Errorf("monitor: %v, alive %t", err, watch.Alive())
	}
	first := p.Pid()
	if err := p.Kill9(); err != nil || p.Alive() {
		t.Errorf("kill -9: %v, alive %t", err, p.Alive())
	}
	if strings.Contains(p.Log(), "stopped") {
		t.Error("kill -9 let the process clean up")
	}
	if err := l.AwaitVippin(ctx, l.RB); err != nil { // the stand-in's status needs no daemon
		t.Error(err)
	}
	if err := p.Restart(); err != nil || p.Pid() == first {
		t.Errorf("restart: %v, pid %d after %d", err, p.Pid(), first)
	}
	if err := Await(ctx, "the second run", func() (bool, error) { return strings.Count(p.Log(), "running") == 2, nil }); err != nil {
		t.Error(err)
	}
	if err := p.Stop(); err != nil || !strings.Contains(p.Log(), "stopped") {
		t.Errorf("stop: %v, log %q", err, p.Log())
	}
}

// Where BTF is hidden the program sees none, and otherwise what everybody sees.
func TestNoBTF(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "vippin")
	script := "#!/bin/sh\nls /sys/kernel/btf | wc -l; stat -c %d /sys/fs/bpf; ip -br link show dev wan0 | cut -c1-4; shift 2; echo $$ \"$@\""
	if err := os.WriteFile(bin, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	l := ForTest(t, "nobtf", Options{Hosts: 1, SingleRouter: true, VippinBin: bin, NoBTF: true})
	p, err := l.StartCommand(l.RA, "some", "two words")
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	var bpffs unix.Stat_t
	if err := unix.Stat(bpfRoot, &bpffs); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("0\n%d\nwan0\n%d some two words\n", bpffs.Dev, p.Pid())
	if got := p.Log(); got != want {
		t.Errorf("the program saw %q, want %q (%v)", got, want, p.Err())
	}
}

// A process that ends instead of doing its work fails a wait at once.
func TestAwaitLogSeesTheEnd(t *testing.T) {
	l := ForTest(t, "ends", Options{Hosts: 1, SingleRouter: true})
	p, err := l.RA.Start(l.Dir, "ends", nil, "sh", "-c", "echo cannot do it; exit 7")
	if err != nil {
		t.Fatal(err)
	}
	err = p.AwaitLog(testContext(t), "done")
	if err == nil || !strings.Contains(err.Error(), "cannot do it") || !strings.Contains(err.Error(), "exit status 7") {
		t.Errorf("AwaitLog: %v", err)
	}
	if err := p.AwaitLog(testContext(t), "cannot"); err != nil {
		t.Errorf("what it wrote before its end: %v", err)
	}
}

// What is pinned in a router's bpffs folder goes, and with it the programs on
// the router's interfaces.
func TestRemovePins(t *testing.T) {
	l := ForTest(t, "pins", Options{Hosts: 1, SingleRouter: true})
	root := t.TempDir()
	if err := unix.Mount("bpf", root, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(root, unix.MNT_DETACH)
	dir := filepath.Join(root, "vippin")
	if err := os.MkdirAll(filepath.Join(dir, "links"), 0o755); err != nil {
		t.Fatal(err)
	}
	wan, err := l.RA.Netlink().LinkByName(WAN.Name)
	if err != nil {
		t.Fatal(err)
	}
	attached := func() (n int) {
		err := l.RA.Do(func() error {
			programs, err := link.QueryPrograms(link.QueryOptions{Target: wan.Attrs().Index, Attach: ebpf.AttachTCXEgress})
			if err == nil {
				n = len(programs.Programs)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if err := l.RA.Do(func() error { return pinProgram(dir, wan.Attrs().Index) }); err != nil {
		t.Fatal(err)
	}
	if n := attached(); n != 1 {
		t.Fatalf("%d programs attached, want 1", n)
	}
	if err := removePins(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder: %v", err)
	}
	if err := Await(testContext(t), "the program off the interface", func() (bool, error) { return attached() == 0, nil }); err != nil {
		t.Error(err)
	}
	if err := removePins(dir); err != nil {
		t.Errorf("nothing to remove: %v", err)
	}
}

// pinProgram attaches a program that does nothing and pins its link and a map.
func pinProgram(dir string, ifindex int) error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		return err
	}
	defer m.Close()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "Apache-2.0",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
	})
	if err != nil {
		return err
	}
	defer program.Close()
	at, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: program, Attach: ebpf.AttachTCXEgress})
	if err != nil {
		return err
	}
	defer at.Close()
	return errors.Join(m.Pin(filepath.Join(dir, "map")), at.Pin(filepath.Join(dir, "links", "egress")))
}
