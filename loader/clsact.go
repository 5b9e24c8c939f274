// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// filterHandle is that of our filters; their name tells them from others of the
// same handle and priority.
const filterHandle = 0x7669

func filterName(h hook) string { return "vippin_" + h.name }

// filterMark is a directory that stands for "filters of ours are on this
// interface", so that they are found again after they have left every plan.
func (d *Dataplane) filterMark(ifindex int) string {
	return filepath.Join(d.dir, linksDir, fmt.Sprintf("%d-filters", ifindex))
}

func setMark(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("note what is attached: %w", err)
	}
	return nil
}

func clearMark(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget what was attached: %w", err)
	}
	return nil
}

// clsactMark is a directory that stands for "the clsact queue discipline of this
// interface is ours to remove": bpffs holds no ordinary files.
func (d *Dataplane) clsactMark(ifindex int) string {
	return filepath.Join(d.dir, linksDir, fmt.Sprintf("%d-clsact", ifindex))
}

// attachFilter attaches by a clsact filter in direct-action mode, for kernels
// without tcx. Other people's filters and queue disciplines are left alone.
func (d *Dataplane) attachFilter(ifindex int, h hook) error {
	if err := d.ensureClsact(ifindex, h); err != nil {
		return err
	}
	if err := setMark(d.filterMark(ifindex)); err != nil {
		return err
	}
	return putFilter(ifindex, h, d.program(h))
}

// putFilter makes a filter of ours, or replaces its program.
func putFilter(ifindex int, h hook, program *ebpf.Program) error {
	filter, err := findFilter(ifindex, h)
	if err != nil {
		return err
	}
	if filter == nil {
		priority, err := freePriority(ifindex, h)
		if err != nil {
			return err
		}
		filter = &netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{
				LinkIndex: ifindex, Parent: h.parent, Handle: filterHandle,
				Protocol: unix.ETH_P_ALL, Priority: priority,
			},
			Name: filterName(h), DirectAction: true,
		}
	}
	return replaceFilter(filter, program)
}

// moveFilter gives a filter of ours the priority that its hook has now. In
// between it is there twice, and the second one finds nothing to do.
func (d *Dataplane) moveFilter(filter *netlink.BpfFilter, h hook) error {
	priority, err := freePriority(filter.LinkIndex, h)
	if err != nil {
		return err
	}
	next := *filter
	next.Priority, next.Id = priority, 0
	if err := replaceFilter(&next, d.program(h)); err != nil {
		return err
	}
	if err := netlink.FilterDel(filter); err != nil {
		return fmt.Errorf("remove filter %s at its old priority: %w", filter.Name, err)
	}
	return nil
}

// ensureClsact makes the clsact queue discipline if the interface has none. An
// ingress queue discipline stands in the same place and is not ours to replace:
// it has an ingress side only.
func (d *Dataplane) ensureClsact(ifindex int, h hook) error {
	if filter, err := findFilter(ifindex, h); err != nil || filter != nil {
		return err // where ours is there is one
	}
	for range 2 { // somebody else may be doing the same
		err := netlink.QdiscAdd(&netlink.GenericQdisc{
			QdiscAttrs: netlink.QdiscAttrs{
				LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
			},
			QdiscType: "clsact",
		})
		if err == nil {
			return setMark(d.clsactMark(ifindex))
		}
		if !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add clsact queue discipline: %w", err)
		}
		kind, err := clsactKind(ifindex)
		if err != nil {
			return err
		}
		if kind == "clsact" || kind == "ingress" && h.name == ingressHook.name {
			return nil
		}
		if kind != "" {
			return &UnsupportedError{
				Missing: fmt.Sprintf("an egress hook on interface %d, which has the queue discipline %q", ifindex, kind),
				Remedy:  "replace it by \"clsact\", which takes the same ingress filters, or use Linux 6.6 or later, where it is in nobody's way",
			}
		}
	}
	return errors.New("add clsact queue discipline: another one appears and disappears")
}

// clsactKind is the kind of queue discipline in the place of clsact, "" for none.
// The kernel lists those of all interfaces to tell: with many VLANs it is not to be
// asked of each of them.
func clsactKind(ifindex int) (string, error) {
	list, err := netlink.QdiscList(linkOf(ifindex))
	if err != nil {
		return "", fmt.Errorf("list queue disciplines: %w", err)
	}
	for _, qdisc := range list {
		// HANDLE_INGRESS is the same number.
		if attrs := qdisc.Attrs(); attrs.Parent == netlink.HANDLE_CLSACT && attrs.LinkIndex == ifindex {
			return qdisc.Type(), nil
		}
	}
	return "", nil
}

func linkOf(ifindex int) netlink.Link {
	return &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: ifindex}}
}

// findFilter returns our filter on a hook, or nil.
func findFilter(ifindex int, h hook) (*netlink.BpfFilter, error) {
	list, err := filters(ifindex, h)
	for _, filter := range list {
		if ours, ok := filter.(*netlink.BpfFilter); ok && ours.Name == filterName(h) {
			return ours, nil
		}
	}
	return nil, err
}

// filters lists the filters on a hook; none if there is no hook or interface. An
// ingress queue discipline, which has one side only, has the same ones on both hooks.
func filters(ifindex int, h hook) ([]netlink.Filter, error) {
	list, err := netlink.FilterList(linkOf(ifindex), h.parent)
	if errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list filters: %w", err)
	}
	return list, nil
}

// freePriority is the one nearest to the wire that no filter of another kind
// or protocol has taken.
func freePriority(ifindex int, h hook) (uint16, error) {
	list, err := filters(ifindex, h)
	if err != nil {
		return 0, err
	}
	taken := make(map[int]bool)
	for _, filter := range list {
		attrs := filter.Attrs()
		if filter.Type() != "bpf" || attrs.Protocol != unix.ETH_P_ALL || attrs.Handle == filterHandle {
			taken[int(attrs.Priority)] = true
		}
	}
	for priority := h.priority; priority > 0 && priority <= 0xffff; priority += h.step {
		if !taken[priority] {
			return uint16(priority), nil
		}
	}
	return 0, errors.New("every filter priority is taken")
}

// replaceFilter makes a filter, or puts program in the place of its present
// one in one step.
func replaceFilter(filter *netlink.BpfFilter, program *ebpf.Program) error {
	id, err := programID(program)
	if err != nil {
		return err
	}
	if filter.Id == int(id) {
		return nil
	}
	next := *filter
	next.Fd, next.Id, next.Tag = program.FD(), 0, ""
	if err := netlink.FilterReplace(&next); err != nil {
		return fmt.Errorf("set filter %s: %w", filter.Name, err)
	}
	return nil
}

func (d *Dataplane) detachFilter(ifindex int, h hook) error {
	filter, err := findFilter(ifindex, h)
	if err != nil {
		return err
	}
	if filter != nil {
		if err := netlink.FilterDel(filter); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("remove filter %s: %w", filter.Name, err)
		}
	}
	return d.releaseClsact(ifindex)
}

// releaseClsact clears up when all filters of ours are gone. It removes the clsact
// queue discipline if we made it and it is empty; with other people's filters
// in it, it is theirs from now on.
func (d *Dataplane) releaseClsact(ifindex int) error {
	foreign := false
	for _, h := range hooks {
		list, err := filters(ifindex, h)
		if err != nil {
			return err
		}
		for _, filter := range list {
			if ours, ok := filter.(*netlink.BpfFilter); ok && (ours.Name == filterName(h) || ours.Name == filterName(learnHook)) {
				return nil
			}
			foreign = true
		}
	}
	if _, err := os.Stat(d.clsactMark(ifindex)); err == nil && !foreign {
		if err := removeClsact(ifindex); err != nil {
			return err
		}
	}
	return errors.Join(clearMark(d.clsactMark(ifindex)), clearMark(d.filterMark(ifindex)))
}

func removeClsact(ifindex int) error {
	kind, err := clsactKind(ifindex)
	if errors.Is(err, unix.ENODEV) || err == nil && kind != "clsact" {
		return nil
	}
	if err != nil {
		return err
	}
	err = netlink.QdiscDel(&netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
		},
		QdiscType: "clsact",
	})
	if err != nil {
		return fmt.Errorf("remove clsact queue discipline: %w", err)
	}
	return nil
}
