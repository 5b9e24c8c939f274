// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// TestExplainLoad: a failure names what is missing, the likeliest cause first.
func TestExplainLoad(t *testing.T) {
	everything := kernelFacts{
		haveBTF:       func() bool { return true },
		haveRingBuf:   func() bool { return true },
		haveCoarse:    func() bool { return true },
		haveConntrack: func() bool { return true },
	}
	no := func() bool { return false }
	kfunc := fmt.Errorf("kfunc %q: %w", "bpf_skb_ct_lookup", ebpf.ErrNotSupported)
	refused := &ebpf.VerifierError{Cause: unix.EACCES, Log: []string{"0: first", "1", "2", "3", "4", "5", "6: R0 invalid mem access"}}
	for _, test := range []struct {
		name   string
		lacks  func(*kernelFacts)
		err    error
		want   string // in the message
		absent bool   // of the kernel: an UnsupportedError
	}{
		{"conntrack", func(k *kernelFacts) { k.haveConntrack = no }, kfunc, "load the module nf_conntrack", true},
		{"kfunc", nil, kfunc, "missing a conntrack function for BPF programs", true},
		{"ring buffer", func(k *kernelFacts) { k.haveRingBuf = no }, unix.EINVAL, "missing BPF ring buffers", true},
		{"clock", func(k *kernelFacts) { k.haveCoarse = no }, unix.EINVAL, "bpf_ktime_get_coarse_ns", true},
		{"permission", nil, unix.EPERM, "CAP_BPF, CAP_NET_ADMIN", true},
		{"verifier", nil, fmt.Errorf("program x: %w", refused), "6: R0 invalid mem access", false},
		{"nothing known", nil, unix.ENOMEM, "load programs: cannot allocate memory", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			kernel := everything
			if test.lacks != nil {
				test.lacks(&kernel)
			}
			var log logBuffer
			err := explainLoad(test.err, kernel, log.logger())
			contains(t, err.Error(), test.want)
			var unsupported *UnsupportedError
			if errors.As(err, &unsupported) != test.absent {
				t.Errorf("%v is an UnsupportedError: %v, want %v", err, !test.absent, test.absent)
			}
			if cause := errors.Unwrap(test.err); test.absent && cause != nil && !errors.Is(err, cause) {
				t.Errorf("%v does not wrap %v", err, cause)
			}
			if log.String() != "" {
				t.Errorf("logged above debug: %s", &log)
			}
		})
	}
}
