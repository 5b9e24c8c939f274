// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"vippin/bpf"
)

// A device that refuses frames (bpf/fast_refused.h) is off the fast path until
// its link was down, or for so long.
const refusedFor = 10 * time.Minute

// loopback is the ifindex of lo, in every network namespace.
const loopback = 1

// fastLoss is what fast_losses tells: struct fast_loss.
type fastLoss struct{ number, errno, frames uint32 }

func decodeLoss(record []byte) (fastLoss, error) {
	if len(record) < 12 {
		return fastLoss{}, fmt.Errorf("the record has %d octets", len(record))
	}
	return fastLoss{
		number: binary.NativeEndian.Uint32(record),
		errno:  binary.NativeEndian.Uint32(record[4:]),
		frames: binary.NativeEndian.Uint32(record[8:]),
	}, nil
}

// refusal is what a device was seen to refuse.
type refusal struct {
	errno  unix.Errno
	frames uint64
	until  time.Time
}

// fastTracer watches for frames that devices refuse.
type fastTracer struct {
	coll   *ebpf.Collection
	links  []link.Link
	cancel context.CancelFunc
	done   sync.WaitGroup
	err    error // of done
}

// splitTracer takes the programs that trace out of a spec, into one of their own:
// a kernel that has not got them loses no more than the warning.
func splitTracer(spec *ebpf.CollectionSpec) *ebpf.CollectionSpec {
	tracer := spec.Copy()
	tracer.Variables = nil
	for name, program := range spec.Programs {
		if program.Type == ebpf.Tracing {
			delete(spec.Programs, name)
		} else {
			delete(tracer.Programs, name)
		}
	}
	used := usedMaps(tracer)
	for name := range tracer.Maps {
		if !used[name] {
			delete(tracer.Maps, name)
		}
	}
	return tracer
}

// usedMaps are the maps that a spec's programs name.
func usedMaps(spec *ebpf.CollectionSpec) map[string]bool {
	used := make(map[string]bool)
	for _, program := range spec.Programs {
		for _, instruction := range program.Instructions {
			if instruction.IsLoadFromMap() {
				used[instruction.Reference()] = true
			}
		}
	}
	return used
}

// trace attaches the programs that trace, which share the maps of the others.
// Watching what is sent costs 1 or 2 % of a packet's time: it is for kernels that
// do not say what drivers can.
func (f *Fastpath) trace(spec *ebpf.CollectionSpec, shared map[string]*ebpf.Map) (err error) {
	if _, known, err := f.features(loopback); err != nil || known {
		delete(spec.Programs, bpf.FastpathProgVippinSending)
	}
	replacements := make(map[string]*ebpf.Map)
	for name, want := range spec.Maps {
		want.Pinning = ebpf.PinNone
		if m := shared[name]; m != nil {
			want.MaxEntries = m.MaxEntries()
			replacements[name] = m
		}
	}
	t := &fastTracer{cancel: func() {}}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	if t.coll, err = ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replacements}); err != nil {
		return err
	}
	for name, program := range t.coll.Programs {
		l, err := link.AttachTracing(link.TracingOptions{Program: program})
		if err != nil {
			return fmt.Errorf("attach %s: %w", name, err)
		}
		t.links = append(t.links, l)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.cancel = cancel
	t.done.Go(func() {
		t.err = readRing(ctx, t.coll.Maps[bpf.FastpathMapFastLosses], "refused frames", decodeLoss, f.takeOff)
	})
	f.tracer = t
	return nil
}

func (t *fastTracer) close() error {
	if t == nil {
		return nil
	}
	t.cancel()
	t.done.Wait()
	errs := []error{t.err}
	for _, l := range t.links {
		errs = append(errs, l.Close())
	}
	if t.coll != nil {
		t.coll.Close()
	}
	return errors.Join(errs...)
}

// takeOff takes a device off the fast path, which the programs have closed. The
// next Attach tells of it.
func (f *Fastpath) takeOff(loss fastLoss) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for ifindex, number := range f.numbers {
		if uint32(number) != loss.number {
			continue
		}
		was := f.refused[ifindex]
		f.refused[ifindex] = refusal{unix.Errno(loss.errno), was.frames + uint64(loss.frames), time.Now().Add(refusedFor)}
		f.log.Warn("a device refused frames that XDP redirected to it: it is taken off the fast path",
			"ifindex", ifindex, "error", unix.Errno(loss.errno), "frames", loss.frames)
		if err := f.putDevice(ifindex, fastDeviceValue{}); err != nil {
			return err
		}
	}
	return f.Bump() // and opens it again
}

// judgeRefusals refuses devices that refused frames, until there is a reason to
// try again.
func (f *Fastpath) judgeRefusals(devices []*fastDevice) {
	here := make(map[int]bool)
	for _, d := range devices {
		was, broke := f.refused[d.Ifindex]
		if !broke {
			continue
		}
		up := isUp(d.link.Attrs().RawFlags)
		if d.Refused != "" || d.fresh || !up || was.errno == unix.ENETDOWN || time.Now().After(was.until) {
			continue
		}
		here[d.Ifindex] = true
		d.refuse("it refused %d frames that XDP sent there (%v); it is tried again %v after that, or when its link has been down",
			was.frames, was.errno, refusedFor)
	}
	for ifindex := range f.refused {
		if !here[ifindex] {
			delete(f.refused, ifindex)
		}
	}
}
