// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// fastDir holds the fast path's attachments, below the bpffs directory.
const fastDir = "fastpath"

// learnHook is behind egressHook: what leaves is learnt as it is on the wire.
// Without tcx egressHook leaves it the last priority.
var learnHook = hook{"learn", ebpf.AttachTCXEgress, link.Tail, netlink.HANDLE_MIN_EGRESS, 0xffff, -1}

func (d *Dataplane) fastPath(ifindex int, what string) string {
	return filepath.Join(d.dir, fastDir, fmt.Sprintf("%d-%s", ifindex, what))
}

func (d *Dataplane) xdpPath(ifindex int) string { return d.fastPath(ifindex, "xdp") }

// learnMark is a directory that stands for "a filter that learns is on this
// interface".
func (d *Dataplane) learnMark(ifindex int) string { return d.fastPath(ifindex, "filter") }

// fastAttachments lists the interfaces that have an attachment of the fast path.
func (d *Dataplane) fastAttachments() ([]int, error) {
	entries, err := os.ReadDir(filepath.Join(d.dir, fastDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list attachments of the fast path: %w", err)
	}
	var list []int
	for _, entry := range entries {
		digits, _, _ := strings.Cut(entry.Name(), "-")
		if ifindex, err := strconv.Atoi(digits); err == nil && !slices.Contains(list, ifindex) {
			list = append(list, ifindex)
		}
	}
	return list, nil
}

// xdpOf is the XDP program that is on an interface, by netlink.
type xdpOf struct {
	program ebpf.ProgramID // 0: none, or several
	mode    uint32         // nl.XDP_ATTACHED_*
}

// openXDP opens the pinned XDP link of an interface. nil: there is none, or it is
// on another device than the one that has this number now, and was removed.
func (d *Dataplane) openXDP(ifindex int, on xdpOf) (link.Link, error) {
	path := d.xdpPath(ifindex)
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open pinned link %s: %w", path, err)
	}
	info, err := l.Info()
	if err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("look at pinned link %s: %w", path, err)
	}
	// A link stays on a device that is moved to another namespace, whose number
	// there may be the same.
	if x := info.XDP(); x != nil && int(x.Ifindex) == ifindex && on.program == info.Program {
		return l, nil
	}
	defer func() { _ = l.Close() }()
	if err := removeLink(l, path); err != nil {
		return nil, fmt.Errorf("remove link of an interface that is gone: %w", err)
	}
	return nil, nil
}

// attachXDP puts the program on an interface that has none, natively if the
// driver can. why is what the driver says against that.
func (f *Fastpath) attachXDP(ifindex int, name string) (why, err error) {
	f.log.Info("attaching XDP natively: some drivers take the link down for a moment", "interface", name)
	l, err := link.AttachXDP(link.XDPOptions{Program: f.forward, Interface: ifindex, Flags: link.XDPDriverMode})
	if err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENODEV) {
		why = err
		l, err = link.AttachXDP(link.XDPOptions{Program: f.forward, Interface: ifindex, Flags: link.XDPGenericMode})
	}
	if err != nil {
		return why, err
	}
	defer func() { _ = l.Close() }() // unless it was pinned, this detaches
	return why, pinAside(l, f.plane.xdpPath(ifindex))
}

// attachLearner puts the program that learns behind everything else at egress,
// which at least vippin_egress must be before.
func (f *Fastpath) attachLearner(ifindex int) error {
	if f.plane.noTCX {
		return f.attachLearnFilter(ifindex)
	}
	held, err := f.plane.openLearner(ifindex)
	if err != nil {
		return err
	}
	if held != nil {
		defer func() { _ = held.Close() }()
		last, err := f.isLast(held, ifindex)
		if err != nil {
			return err
		}
		if last {
			return updateLink(held, f.learn)
		}
		if err := removeLink(held, f.plane.fastPath(ifindex, learnHook.name)); err != nil {
			return err
		}
	}
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: ifindex, Program: f.learn, Attach: learnHook.attach, Anchor: learnHook.anchor(),
	})
	if errors.Is(err, ebpf.ErrNotSupported) {
		return f.attachLearnFilter(ifindex)
	}
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	return pinAside(l, f.plane.fastPath(ifindex, learnHook.name))
}

// openLearner opens the pinned tcx link of the program that learns, as openLink
// does for others.
func (d *Dataplane) openLearner(ifindex int) (link.Link, error) {
	return d.openLinkAt(d.fastPath(ifindex, learnHook.name), ifindex, learnHook)
}

// isLast tells whether no program of ours, whose link is pinned, runs after the
// one that learns.
func (f *Fastpath) isLast(learner link.Link, ifindex int) (bool, error) {
	egress, err := f.plane.openLink(ifindex, egressHook)
	if err != nil || egress == nil {
		return err == nil, err
	}
	defer func() { _ = egress.Close() }()
	before, err := egress.Info()
	if err != nil {
		return false, fmt.Errorf("look at egress link: %w", err)
	}
	after, err := learner.Info()
	if err != nil {
		return false, fmt.Errorf("look at learning link: %w", err)
	}
	there, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: learnHook.attach})
	if err != nil {
		return false, fmt.Errorf("list programs at egress: %w", err)
	}
	place := func(id link.ID) int {
		return slices.IndexFunc(there.Programs, func(program link.AttachedProgram) bool {
			link, ok := program.LinkID()
			return ok && link == id
		})
	}
	return place(after.ID) > place(before.ID), nil
}

// attachLearnFilter is attachLearner for kernels without tcx.
func (f *Fastpath) attachLearnFilter(ifindex int) error {
	if err := f.plane.ensureClsact(ifindex, learnHook); err != nil {
		return err
	}
	if err := setMark(f.plane.learnMark(ifindex)); err != nil {
		return err
	}
	egress, err := findFilter(ifindex, egressHook)
	if err != nil {
		return err
	}
	learner, err := findFilter(ifindex, learnHook)
	if err != nil {
		return err
	}
	if egress != nil && egress.Priority == uint16(learnHook.priority) { // an earlier version's
		if err := f.plane.moveFilter(egress, egressHook); err != nil {
			return err
		}
	}
	if learner != nil && egress != nil && learner.Priority < egress.Priority {
		if err := netlink.FilterDel(learner); err != nil {
			return fmt.Errorf("remove filter %s: %w", learner.Name, err)
		}
	}
	return putFilter(ifindex, learnHook, f.learn)
}

// detachFast takes the fast path's programs off an interface. One that is gone is
// no error.
func (d *Dataplane) detachFast(ifindex int, on xdpOf) error {
	l, err := d.openXDP(ifindex, on)
	if l != nil {
		err = removeLink(l, d.xdpPath(ifindex))
		_ = l.Close()
	}
	if err != nil {
		return fmt.Errorf("detach XDP program: %w", err)
	}
	learner, err := d.openLearner(ifindex)
	if learner != nil {
		err = removeLink(learner, d.fastPath(ifindex, learnHook.name))
		_ = learner.Close()
	}
	if _, absent := os.Stat(d.learnMark(ifindex)); err == nil && absent == nil {
		if err = d.detachFilter(ifindex, learnHook); err == nil {
			err = clearMark(d.learnMark(ifindex))
		}
	}
	if err != nil {
		return fmt.Errorf("detach learning program: %w", err)
	}
	return nil
}

// replacePrograms puts the loaded programs in the place of those that an earlier
// start attached.
func (f *Fastpath) replacePrograms() error {
	list, err := f.plane.fastAttachments()
	if err != nil {
		return err
	}
	var errs []error
	for _, ifindex := range list {
		if err := f.replaceOn(ifindex); err != nil {
			errs = append(errs, fmt.Errorf("replace the fast path's programs on interface %d: %w", ifindex, err))
		}
	}
	return errors.Join(errs...)
}

func (f *Fastpath) replaceOn(ifindex int) error {
	on, err := readXDP(ifindex)
	if err != nil {
		return err
	}
	l, err := f.plane.openXDP(ifindex, on)
	if err == nil && l != nil {
		err = updateLink(l, f.forward)
		_ = l.Close()
	}
	if err != nil {
		return err
	}
	learner, err := f.plane.openLearner(ifindex)
	if err == nil && learner != nil {
		err = updateLink(learner, f.learn)
		_ = learner.Close()
		return err
	}
	if err != nil {
		return err
	}
	filter, err := findFilter(ifindex, learnHook)
	if err != nil || filter == nil {
		return err
	}
	return replaceFilter(filter, f.learn)
}

// readXDP asks what is on an interface; nothing if it is gone.
func readXDP(ifindex int) (xdpOf, error) {
	l, err := netlink.LinkByIndex(ifindex)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return xdpOf{}, nil
	}
	if err != nil {
		return xdpOf{}, fmt.Errorf("look at interface %d: %w", ifindex, err)
	}
	return xdpOn(l), nil
}

func xdpOn(l netlink.Link) xdpOf {
	xdp := l.Attrs().Xdp
	if xdp == nil || !xdp.Attached {
		return xdpOf{}
	}
	return xdpOf{ebpf.ProgramID(xdp.ProgId), xdp.AttachMode}
}
