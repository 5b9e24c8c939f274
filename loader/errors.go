// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// ErrNotLoaded says that there is no dataplane below the bpffs directory.
var ErrNotLoaded = errors.New("no dataplane is loaded (start the daemon, or run \"vippin load\")")

// UnsupportedError names something that this kernel, or this process, lacks.
type UnsupportedError struct {
	Missing string // a noun phrase, as in "the kernel lacks …"
	Remedy  string // what the operator can do, a verb phrase
	Err     error  // what failed, may be nil
}

func (e *UnsupportedError) Error() string {
	text := fmt.Sprintf("missing %s: %s", e.Missing, e.Remedy)
	if e.Err != nil {
		text += fmt.Sprintf(" (%v)", e.Err)
	}
	return text
}

func (e *UnsupportedError) Unwrap() error { return e.Err }

// verifierTail is how many lines of the verifier's log an error carries: the
// complaint and the instructions before it.
const verifierTail = 6

// kernelFacts answers what explainLoad asks of the running kernel.
type kernelFacts struct {
	haveBTF       func() bool
	haveRingBuf   func() bool
	haveCoarse    func() bool
	haveConntrack func() bool
}

const btfPath = "/sys/kernel/btf/vmlinux"

// HasBTF tells whether the kernel describes its own types. One that does not
// gets the lowest tier.
func HasBTF() bool {
	_, err := os.Stat(btfPath)
	return err == nil
}

// runningKernel probes. Every probe is costly, so only failures ask.
func runningKernel() kernelFacts {
	exists := func(path string) func() bool {
		return func() bool { _, err := os.Stat(path); return err == nil }
	}
	return kernelFacts{
		haveBTF: HasBTF,
		haveRingBuf: func() bool {
			return !errors.Is(features.HaveMapType(ebpf.RingBuf), ebpf.ErrNotSupported)
		},
		haveCoarse: func() bool {
			return !errors.Is(features.HaveProgramHelper(ebpf.SchedCLS, asm.FnKtimeGetCoarseNs), ebpf.ErrNotSupported)
		},
		haveConntrack: exists("/proc/sys/net/netfilter/nf_conntrack_max"),
	}
}

// explainLoad turns a failure to load maps and programs into what the operator
// can act on. The whole verifier log goes to the debug log only.
func explainLoad(err error, kernel kernelFacts, log *slog.Logger) error {
	var verifier *ebpf.VerifierError
	if errors.As(err, &verifier) {
		log.LogAttrs(context.Background(), slog.LevelDebug, "verifier log", slog.String("log", fmt.Sprintf("%+v", verifier)))
	}
	switch {
	case isKfuncError(err) && !kernel.haveConntrack():
		return &UnsupportedError{"connection tracking", "load the module nf_conntrack, or take a kernel that has it", err}
	case isKfuncError(err):
		return &UnsupportedError{"a conntrack function for BPF programs (kfunc)",
			"take Linux 6.1 or later, with BTF for modules (CONFIG_DEBUG_INFO_BTF_MODULES)", err}
	case verifier != nil:
		lines := verifier.Log[max(0, len(verifier.Log)-verifierTail):]
		return fmt.Errorf("load programs: the verifier refuses: %w; its last lines:\n\t%s", verifier.Cause, strings.Join(lines, "\n\t"))
	case !kernel.haveRingBuf():
		return &UnsupportedError{"BPF ring buffers", "take Linux 6.1 or later", err}
	case !kernel.haveCoarse():
		return &UnsupportedError{"the BPF helper bpf_ktime_get_coarse_ns", "take Linux 6.1 or later", err}
	case errors.Is(err, unix.EPERM):
		return permissionError(err)
	}
	return fmt.Errorf("load programs: %w", err)
}

func isKfuncError(err error) bool {
	return strings.Contains(err.Error(), "kfunc")
}

func permissionError(err error) error {
	return &UnsupportedError{"permission", "run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, outside kernel lockdown", err}
}
