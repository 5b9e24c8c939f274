// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"vippin/bpf"
	"vippin/loader/conntrack"
	"vippin/policy"
)

// install tries the flows in a scratch namespace.
func (x *rehearsal) install(ctx context.Context) error {
	return inScratch(func() (err error) {
		scratch, err := x.newScratch()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, scratch.close()) }()
		for x.tried < len(x.Flows) {
			if x.ranOut(ctx, x.tried, "tried") {
				return nil
			}
			end := min(x.tried+rehearseChunk, len(x.Flows))
			if err := x.installChunk(scratch, x.tried, end); err != nil {
				return err
			}
			x.tried = end
		}
		return nil
	})
}

// scratch is a Replica in the network namespace of the calling thread, with this
// router's plan, but with maps of its own.
type scratch struct{ Replica }

func (x *rehearsal) newScratch() (*scratch, error) {
	log := slog.New(slog.DiscardHandler)
	s := &scratch{Replica{d: &Dataplane{log: log}, log: log}}
	s.options.Store(x.options.Load())
	s.index.Store(x.plan)
	var err error
	if s.conn, err = conntrack.Dial(); err == nil {
		err = s.makeMaps(x.d)
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// makeMaps makes the maps that installing writes, as large as those in force, but
// without taking the memory beforehand.
func (s *scratch) makeMaps(like *Dataplane) error {
	spec, err := bpf.LoadDataplane()
	if err != nil {
		return fmt.Errorf("read the built-in programs: %w", err)
	}
	m := &s.d.maps
	for _, wanted := range []struct {
		name string
		m    **ebpf.Map
		most uint32
	}{
		{bpf.DataplaneMapByPublic, &m.ByPublic, like.maps.ByPublic.MaxEntries()},
		{bpf.DataplaneMapByLocal, &m.ByLocal, like.maps.ByLocal.MaxEntries()},
		{bpf.DataplaneMapEpoch, &m.Epoch, 0},
	} {
		spec := spec.Maps[wanted.name]
		spec.Pinning = ebpf.PinNone
		if wanted.most != 0 {
			spec.MaxEntries = wanted.most
			spec.Flags |= unix.BPF_F_NO_PREALLOC
		}
		if *wanted.m, err = ebpf.NewMap(spec); err != nil {
			return fmt.Errorf("make map %s: %w", wanted.name, err)
		}
	}
	return nil
}

func (s *scratch) close() error { return errors.Join(s.Replica.Close(), s.d.Close()) }

// installChunk installs some flows and reads back what became of them.
func (x *rehearsal) installChunk(s *scratch, from, to int) error {
	s.installer.told = func(i int, w *installing) { x.judge(from+i, w) }
	began := monotonic()
	_, err := s.install(to-from, nil, func(i int) Installation { return Installation{Flow: &x.Flows[from+i]} })
	x.took += monotonic() - began
	if err != nil {
		return err
	}
	return x.readBack(s, from, to)
}

// judge says what is wrong with a flow that was not installed, or not wholly.
func (x *rehearsal) judge(i int, w *installing) {
	f := &x.Flows[i]
	switch w.outcome {
	case RefusedClash:
		x.fail(i, "clash", "another flow of the peer's table has the same end on the wire, as this router sees it")
	case RefusedFull:
		x.fail(i, "full", "the peer's table does not fit into conntrack's (net.netfilter.nf_conntrack_max) or the maps (dataplane.max_flows)")
	case RefusedNoPin:
		x.fail(i, "no_pin", fmt.Sprintf("no pin of VLAN %v has the VIP %v here", f.Pin.VLAN, f.To.IP()))
	case RefusedInvalid:
		why := "no flow can be so"
		if w.err != nil {
			why = reasonText(w.err)
		}
		x.fail(i, "invalid", why)
	case Failed:
		x.fail(i, "failed", reasonText(w.err))
	default:
		if f.Extra != nil && f.Extra.Helper != "" && w.Flow.Extra.Helper == "" {
			x.missing.add("helper", fmt.Sprintf("this kernel has no conntrack helper %q: what it would expect is lost", f.Extra.Helper), flowText(f))
		}
	}
}

// readBack looks whether the kernel has made of the flows what was meant.
func (x *rehearsal) readBack(s *scratch, from, to int) error {
	tuples, which := make([]conntrack.Tuple, 0, to-from), make([]int, 0, to-from)
	for i := from; i < to; i++ {
		if !x.bad[i] {
			tuples, which = append(tuples, origTuple(&x.Flows[i].FlowKey)), append(which, i)
		}
	}
	right := make([]bool, len(tuples))
	err := s.conn.LookUp(tuples, func(i int, e *conntrack.Flow) {
		f := &x.Flows[which[i]]
		right[i] = e.Orig == tuples[i] && e.Reply == wireTuple(f) && isTranslated(e, f)
	}, func(int, error) {})
	if err != nil {
		return err
	}
	for i, ok := range right {
		if !ok {
			x.fail(which[i], "failed", "the kernel makes another entry of it than it was told to")
		}
	}
	return nil
}

// isTranslated tells whether an entry is set up to do the translation that its
// tuples show.
func isTranslated(e *conntrack.Flow, f *policy.Flow) bool {
	return (f.To == f.Src || e.Status&conntrack.SrcNAT != 0) && (f.From == f.Dst || e.Status&conntrack.DstNAT != 0)
}
