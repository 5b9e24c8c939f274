// SPDX-License-Identifier: Apache-2.0

package nfqueue

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Errors that callers may match with errors.Is.
var (
	ErrTaken        = errors.New("taken by another process")
	ErrNotSupported = errors.New("not supported by this kernel")
)

// explain says what the kernel's answer to the request for a queue means.
func explain(queue uint16, err error) error {
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: load the module nfnetlink_queue, or take a kernel that has it (%v)", ErrNotSupported, err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EBUSY):
		table, _ := os.ReadFile("/proc/thread-self/net/netfilter/nfnetlink_queue")
		if port, taken := owner(string(table), queue); taken {
			return fmt.Errorf("%w (%s): end that one, or give sync.strict_queue another number (%v)", ErrTaken, process(port), err)
		}
	}
	return err
}

// owner finds the netlink port that a queue belongs to: the first two columns of
// /proc/net/netfilter/nfnetlink_queue.
func owner(table string, queue uint16) (port string, taken bool) {
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) >= 2 && fields[0] == strconv.Itoa(int(queue)) {
			return fields[1], true
		}
	}
	return "", false
}

// process names who has a netlink port. The kernel gives a process's first socket
// the process's number.
func process(port string) string {
	name, err := os.ReadFile("/proc/" + port + "/comm")
	if err != nil || strings.Contains(port, "/") {
		return "netlink port " + port
	}
	return fmt.Sprintf("%s, process %s", strings.TrimSpace(string(name)), port)
}

// memoryDrops is SK_MEMINFO_DROPS, and memoryFigures the number of figures of
// SO_MEMINFO, <linux/sock_diag.h>.
const (
	memoryDrops   = 8
	memoryFigures = 9
)

// overruns reads how many messages found the socket's buffer full; of a closed
// one, how many it was when it was asked last.
func (q *Queue) overruns() uint64 {
	_ = q.raw.Control(func(fd uintptr) {
		var figures [memoryFigures]uint32
		size := uint32(unsafe.Sizeof(figures))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&figures)), uintptr(unsafe.Pointer(&size)), 0)
		if errno == 0 {
			q.dropped.Store(uint64(figures[memoryDrops]))
		}
	})
	return q.dropped.Load()
}
