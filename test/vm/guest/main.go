// SPDX-License-Identifier: Apache-2.0

// Command guest is the first process of the emulated machine: it loads modules,
// mounts the host's root, runs the ordered command, reports and powers off. It is
// built without cgo and put into the initramfs by package vm.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vippin/test/vm/internal/order"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest: only of use as the first process of a machine (see package vm)")
		os.Exit(2)
	}
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err) // the console: all there is when the report port is not
	}
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Fprintln(os.Stderr, "guest: power off:", err)
	}
}

// serve makes the machine ready, runs the command and reports how it went.
func serve() error {
	if err := mountAll("", early); err != nil {
		return err
	}
	var todo order.Order
	text, err := os.ReadFile(order.Path)
	if err != nil {
		return fmt.Errorf("read the order: %w", err)
	}
	if err := json.Unmarshal(text, &todo); err != nil {
		return fmt.Errorf("read the order: %w", err)
	}
	for _, name := range todo.Modules {
		if err := loadModule(filepath.Join(order.ModuleDir, name)); err != nil {
			return err
		}
	}
	report, err := openPort(order.ReportPort)
	if err != nil {
		return err
	}
	defer report.Close()
	last := order.Report{Event: order.Exited}
	if last.ExitCode, err = work(todo, report); err != nil {
		last = order.Report{Event: order.Failed, Detail: err.Error()}
	}
	return json.NewEncoder(report).Encode(last)
}

// work enters the host's root and runs the command there.
func work(todo order.Order, report *os.File) (exitCode int, err error) {
	output, err := openPort(order.OutputPort)
	if err != nil {
		return 0, err
	}
	defer output.Close()
	if err := enterHost(todo); err != nil {
		return 0, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, fmt.Errorf("open standard input: %w", err)
	}
	defer null.Close()
	for _, set := range []string{
		"PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "TERM=dumb",
	} {
		key, value, _ := strings.Cut(set, "=")
		if err := os.Setenv(key, value); err != nil {
			return 0, err
		}
	}
	if err := os.Chdir(todo.Dir); err != nil {
		return 0, fmt.Errorf("enter the working directory: %w", err)
	}
	path, err := exec.LookPath(todo.Command[0])
	if err != nil {
		return 0, fmt.Errorf("find the command: %w", err)
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0, fmt.Errorf("read the clock: %w", err)
	}
	if err := json.NewEncoder(report).Encode(order.Report{Event: order.Started, Uptime: time.Duration(now.Nano())}); err != nil {
		return 0, fmt.Errorf("report: %w", err)
	}
	process, err := os.StartProcess(path, todo.Command, &os.ProcAttr{
		Env:   append(os.Environ(), todo.Env...),
		Files: []*os.File{null, output, output},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, fmt.Errorf("start the command: %w", err)
	}
	return reapUntil(process.Pid)
}

// reapUntil takes in every process that ends, orphans of the command included,
// until the command itself does.
func reapUntil(pid int) (exitCode int, err error) {
	for {
		var status unix.WaitStatus
		ended, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for the command: %w", err)
		case ended != pid:
		case status.Signaled():
			return 128 + int(status.Signal()), nil
		default:
			return status.ExitStatus(), nil
		}
	}
}

// openPort opens the virtio serial port of that name.
func openPort(name string) (*os.File, error) {
	ports, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, port := range ports {
		text, err := os.ReadFile(port)
		if err != nil || strings.TrimSpace(string(text)) != name {
			continue
		}
		device := filepath.Join("/dev", filepath.Base(filepath.Dir(port)))
		fd, err := unix.Open(device, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("open port %s: %w", name, err)
		}
		return os.NewFile(uintptr(fd), device), nil // blocking: a write returns when the host has it
	}
	return nil, fmt.Errorf("no virtio port %s among %d", name, len(ports))
}

// loadModule loads one uncompressed module; one that is there already is fine.
func loadModule(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.FinitModule(int(file.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load module %s: %w", filepath.Base(path), err)
	}
	return nil
}
