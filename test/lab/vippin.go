// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const bpfRoot = "/sys/fs/bpf"

var commandTimeout = Slowly(time.Minute)

// ConfigFile is the router's vippin.yaml; StartVippin and WriteVippin write it.
func (r *Router) ConfigFile() string { return filepath.Join(r.Dir, "vippin.yaml") }

// RunDir is the router's run_dir, which holds the control socket.
func (r *Router) RunDir() string { return filepath.Join(r.Dir, "run") }

// StateDir is the router's state_dir.
func (r *Router) StateDir() string { return filepath.Join(r.Dir, "state") }

// WriteVippin writes the router's vippin.yaml: node, run_dir, state_dir and
// bpffs of its own, then the given YAML, and with Options.Fastpath a fast path on
// every segment unless the YAML has a say on it. A running daemon takes it by
// "vippin reload".
func (l *Lab) WriteVippin(r *Router, configYAML string) error {
	text := fmt.Sprintf("node: %s\nrun_dir: %s\nstate_dir: %s\nbpffs: %s\n%s",
		r.Name, r.RunDir(), r.StateDir(), r.BPFFS, configYAML)
	if l.Options.Fastpath && !strings.Contains(configYAML, "fastpath:") {
		text += r.fastpathSection()
	}
	if err := os.WriteFile(r.ConfigFile(), []byte(text), 0o644); err != nil {
		return fmt.Errorf("write vippin.yaml of %s: %w", r.Name, err)
	}
	return nil
}

// StartVippin writes the router's configuration (see WriteVippin) and starts
// the daemon, or restarts it when it runs there. AwaitVippin says when it
// answers. On the returned Proc Kill9, Stop and Restart do what they say.
func (l *Lab) StartVippin(r *Router, configYAML string) (*Proc, error) {
	if err := l.WriteVippin(r, configYAML); err != nil {
		return nil, err
	}
	if p := r.VippinProc(); p != nil {
		return p, p.Restart()
	}
	argv, err := l.vippinCommand("run", "-c", r.ConfigFile())
	if err != nil {
		return nil, err
	}
	p, err := r.Start(r.Dir, "vippin", r.vippinEnv(), argv...)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	r.vippin = p
	l.mu.Unlock()
	return p, nil
}

// AwaitVippin waits until the router's daemon answers "vippin status", be it
// degraded. It fails at once when the daemon ends.
func (l *Lab) AwaitVippin(ctx context.Context, r *Router) error {
	p := r.VippinProc()
	if p == nil {
		return fmt.Errorf("wait for vippin on %s: none was started", r.Name)
	}
	return p.await(ctx, "an answer to vippin status", func() (bool, error) {
		if _, err := os.Stat(filepath.Join(r.RunDir(), "control.sock")); err != nil {
			return false, nil // to ask again and again would only slow its start down
		}
		_, _, exit := l.Vippin(r, "status", "-j")
		return exit == 0 || exit == 3, nil
	})
}

// Vippin runs a vippin command on the router, with the router's configuration
// file ("-c" among the arguments overrides it), and returns what it wrote and
// its exit status, -1 when it could not be run or did not end within a minute
// (then stderr says why). For a command that does not end see StartCommand.
func (l *Lab) Vippin(r *Router, args ...string) (stdout, stderr string, exit int) {
	argv, err := l.vippinCommand(r.commandLine(args)...)
	if err != nil {
		return "", err.Error(), -1
	}
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), r.vippinEnv()...)
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := r.Do(cmd.Start); err != nil {
		return "", fmt.Sprintf("start %s: %v", argv[0], err), -1
	}
	if err := cmd.Wait(); err != nil {
		var ended *exec.ExitError
		if !errors.As(err, &ended) || ctx.Err() != nil {
			return out.String(), complaints.String() + err.Error(), -1
		}
	}
	return out.String(), complaints.String(), cmd.ProcessState.ExitCode()
}

// StartCommand starts a vippin command that does not end by itself, such as
// monitor; its output is in the Proc's log, named after the command.
func (l *Lab) StartCommand(r *Router, args ...string) (*Proc, error) {
	if len(args) == 0 {
		return nil, errors.New("start a vippin command: name one")
	}
	argv, err := l.vippinCommand(r.commandLine(args)...)
	if err != nil {
		return nil, err
	}
	return r.Start(r.Dir, "vippin-"+args[0], r.vippinEnv(), argv...)
}

func (r *Router) commandLine(args []string) []string {
	return append([]string{"-c", r.ConfigFile()}, args...)
}

func (r *Router) vippinEnv() []string {
	return []string{"VIPPIN_RUN_DIR=" + r.RunDir()}
}

// VippinProc is the daemon on the router, nil when none was started.
func (r *Router) VippinProc() *Proc {
	r.lab.mu.Lock()
	defer r.lab.mu.Unlock()
	return r.vippin
}

// vippinCommand is how vippin is run with some arguments. Without BTF it is in a
// mount namespace of its own, where nothing is to be seen in /sys/kernel/btf; bpffs
// stays the machine's, which therefore must be mounted before.
func (l *Lab) vippinCommand(args ...string) ([]string, error) {
	bin, err := l.vippinBin()
	if err != nil || !l.Options.NoBTF {
		return append([]string{bin}, args...), err
	}
	if err := mountBPFFS(); err != nil {
		return nil, err
	}
	hide := []string{"unshare", "--mount", "sh", "-c", `mount -t tmpfs none /sys/kernel/btf && exec "$@"`, "no-btf", bin}
	return append(hide, args...), nil
}

// mountBPFFS does what vippin would do, where it is missing, and not twice.
func mountBPFFS() error {
	root, err := os.Open(bpfRoot)
	if err != nil {
		return nil // vippin will say what is wrong
	}
	defer root.Close() // and the lock goes, which vippin takes, too
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Flock(int(root.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", bpfRoot, err)
	}
	var there unix.Statfs_t
	if err := unix.Statfs(bpfRoot, &there); err != nil || there.Type == unix.BPF_FS_MAGIC {
		return nil // vippin will say what is wrong
	}
	if err := unix.Mount("bpf", bpfRoot, "bpf", 0, ""); err != nil {
		return fmt.Errorf("mount bpffs at %s: %w", bpfRoot, err)
	}
	return nil
}

// vippinBin finds the program, or builds it once for this process.
func (l *Lab) vippinBin() (string, error) {
	for _, bin := range []string{l.Options.VippinBin, os.Getenv("VIPPIN_BIN")} {
		if bin != "" {
			return bin, nil
		}
	}
	return buildVippin()
}

// binDir is below the folder for temporary files; Main and Reap remove it.
func binDir() string { return filepath.Join(os.TempDir(), prefix()+"bin") }

var buildVippin = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(binDir(), "vippin")
	if output, err := exec.Command("go", "build", "-o", bin, "vippin/cmd/vippin").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build vippin (or name the program in VIPPIN_BIN): %w: %s", err, output)
	}
	return bin, nil
})

// removePins removes a folder of bpffs and everything pinned there: links
// first, so that their programs are off the interfaces before maps go.
func removePins(dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.Contains(strings.TrimPrefix(path, dir), "link") {
			return err
		}
		return os.Remove(path)
	})
	if err = errors.Join(err, os.RemoveAll(dir)); err != nil {
		return fmt.Errorf("remove what is pinned in %s: %w", dir, err)
	}
	return nil
}
