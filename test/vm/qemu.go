// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"vippin/test/vm/internal/order"
)

const emulator = "qemu-system-x86_64"

// kernelArgs: no boot splash, no speculation barriers (they only cost here), off
// at once after a panic; memory is not to be copied by string instructions, which
// are emulated octet by octet; and the clock that costs least.
const kernelArgs = "console=ttyS0 loglevel=4 panic=-1 mitigations=off random.trust_cpu=on rdinit=/init " +
	"clearcpuid=erms,rep_good tsc=reliable clocksource=tsc"

// qemuArgs describes the machine. Descriptors 3, 4 and 5 are the console, the
// command's output and the report, 6 is the initramfs.
func qemuArgs(kernel Kernel, opts Options) []string {
	cpus, mem := opts.CPUs, opts.MemMB
	if cpus == 0 {
		cpus = 1
	}
	if mem == 0 {
		mem = 1024
	}
	return []string{
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-nic", "none",
		"-machine", "pc", "-accel", "tcg,thread=multi",
		"-cpu", "max,la57=off,erms=off,fsrm=off", // five-level page tables only slow the emulation down; see kernelArgs
		"-smp", strconv.Itoa(cpus), "-m", strconv.Itoa(mem),
		"-kernel", kernel.Image, "-initrd", "/dev/fd/6", "-append", kernelArgs,
		"-chardev", "file,id=console,path=/dev/fd/3", "-serial", "chardev:console",
		"-device", "virtio-serial-pci",
		"-chardev", "file,id=output,path=/dev/fd/4",
		"-device", "virtserialport,chardev=output,name=" + order.OutputPort,
		"-chardev", "file,id=report,path=/dev/fd/5",
		"-device", "virtserialport,chardev=report,name=" + order.ReportPort,
		"-virtfs", "local,path=/,mount_tag=" + order.MountTag + ",security_model=none,readonly=on,multidevs=remap",
	}
}

// streams are pipes out of the emulator, each copied into a writer.
type streams struct {
	ends    []*os.File // the emulator's
	copying sync.WaitGroup
}

// newStreams makes none yet; finish waits until all that were added have ended.
func newStreams() (s *streams, finish func()) {
	s = &streams{}
	return s, func() {
		s.closeEnds()
		s.copying.Wait()
	}
}

func (s *streams) add(to io.Writer) error {
	read, write, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make a pipe to the machine: %w", err)
	}
	s.ends = append(s.ends, write)
	s.copying.Go(func() {
		defer read.Close()
		if _, err := io.Copy(to, read); err != nil {
			// The writer gave up; the machine must not hang on a full pipe.
			_, _ = io.Copy(io.Discard, read)
		}
	})
	return nil
}

func (s *streams) closeEnds() {
	for _, end := range s.ends {
		end.Close()
	}
	s.ends = nil
}

// runTied runs a program that cannot outlive this process: the kernel kills it
// when the thread that started it ends, and that thread waits for it.
func runTied(cmd *exec.Cmd, started func()) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			done <- err
			return
		}
		started()
		done <- cmd.Wait()
	}()
	return <-done
}

// Build compiles a package of the checkout, named by its relative path, into a
// static program in the cache and returns where it is.
func Build(ctx context.Context, name, pkg string, flags ...string) (string, error) {
	return build(ctx, name, append(append([]string{"build", "-trimpath"}, flags...), pkg))
}

// BuildTest is Build for a package's tests (go test -c).
func BuildTest(ctx context.Context, name, pkg string, flags ...string) (string, error) {
	return build(ctx, name, append(append([]string{"test", "-c", "-trimpath"}, flags...), pkg))
}

var (
	building sync.Mutex                // one at a time: the go command uses every processor
	built    = make(map[string]string) // programs of this process, by how they are built
)

func build(ctx context.Context, name string, args []string) (string, error) {
	building.Lock()
	defer building.Unlock()
	how := fmt.Sprint(name, args)
	if path, there := built[how]; there {
		return path, nil
	}
	path, err := buildNow(ctx, name, args)
	if err == nil {
		built[how] = path
	}
	return path, err
}

func buildNow(ctx context.Context, name string, args []string) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	checkout, err := Checkout()
	if err != nil {
		return "", err
	}
	path := filepath.Join(cache, "bin", name)
	aside := fmt.Sprintf("%s.new-%d", path, os.Getpid())
	// -o goes right behind the verb and its -c, before the package.
	args = append([]string{args[0], "-o", aside}, args[1:]...)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = checkout
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go %v: %w%s", args, err, tail("it said", said))
	}
	return path, os.Rename(aside, path)
}
