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

	"vippin/policy"
)

// The tiers of attachment, as Tier returns them.
const (
	tierTCX    = "tcx"
	tierClsact = "clsact"
	tierMarks  = "+marks" // after either: without BTF, see marks.go
)

// hook is one of the two places on an interface where a program sits.
//
// Ours must be the ones nearest to the wire, so that other people's programs on
// both sides see what the rest of the system sees, the local end of a flow:
// first (head) at ingress, last (tail) at egress.
type hook struct {
	name     string // as in the pinned link's name
	attach   ebpf.AttachType
	anchor   func() link.Anchor
	parent   uint32 // of clsact filters
	priority int    // of clsact filters, low ones run first
	step     int    // to the next priority, where that one is taken
}

// Ingress comes first in attaching: a flow whose packets leave rewritten must
// find its way back.
var (
	ingressHook = hook{"ingress", ebpf.AttachTCXIngress, link.Head, netlink.HANDLE_MIN_INGRESS, 1, +1}
	egressHook  = hook{"egress", ebpf.AttachTCXEgress, link.Tail, netlink.HANDLE_MIN_EGRESS, 0xfffe, -1} // learnHook is last
	hooks       = []hook{ingressHook, egressHook}
)

func (d *Dataplane) program(h hook) *ebpf.Program {
	if h.name == ingressHook.name {
		return d.ingress
	}
	return d.egress
}

func (d *Dataplane) linkPath(ifindex int, h hook) string {
	return filepath.Join(d.dir, linksDir, fmt.Sprintf("%d-%s", ifindex, h.name))
}

// Tier says how the programs are attached: "tcx", or "clsact" on kernels
// without it (before Linux 6.6); "" when nothing was loaded or attached here.
// "+marks" after it: the kernel has no BTF, and a table of nf_tables tells the
// programs by marks what conntrack knows.
func (d *Dataplane) Tier() string {
	tier := d.attachedBy()
	if tier != "" && d.marks {
		tier += tierMarks
	}
	return tier
}

func (d *Dataplane) attachedBy() string {
	entries, err := os.ReadDir(filepath.Join(d.dir, linksDir))
	if err == nil {
		for _, entry := range entries {
			if !entry.IsDir() {
				return tierTCX
			}
		}
	}
	if d.egress == nil { // only opened
		if interfaces, err := readMap[uint32, ifaceValue](d.maps.Ifaces); err == nil && len(interfaces) > 0 {
			return tierClsact
		}
		return ""
	}
	if d.noTCX {
		return tierClsact
	}
	// No interface has this index: a kernel with tcx says so.
	_, err = link.AttachTCX(link.TCXOptions{Interface: noInterface, Program: d.egress, Attach: egressHook.attach})
	if errors.Is(err, ebpf.ErrNotSupported) {
		return tierClsact
	}
	return tierTCX
}

const noInterface = 1<<31 - 1

// attach puts both programs on an interface, or leaves it as it was. What is
// attached already stays, with the present program.
func (d *Dataplane) attach(ifindex int) error {
	for i, h := range hooks {
		err := d.attachHook(ifindex, h)
		if err != nil {
			err = fmt.Errorf("attach %s program: %w", h.name, err)
			for _, done := range hooks[:i] {
				err = errors.Join(err, d.detachHook(ifindex, done))
			}
			return err
		}
	}
	return nil
}

func (d *Dataplane) attachHook(ifindex int, h hook) error {
	if d.program(h) == nil {
		return errors.New("the programs are not loaded here, only their maps are open: run \"vippin load\"")
	}
	if d.noTCX {
		return d.attachFilter(ifindex, h)
	}
	held, err := d.openLink(ifindex, h)
	if err != nil {
		return err
	}
	if held != nil {
		defer func() { _ = held.Close() }()
		return d.updateLink(held, h)
	}
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: ifindex, Program: d.program(h), Attach: h.attach, Anchor: h.anchor(),
	})
	if errors.Is(err, ebpf.ErrNotSupported) {
		return d.attachFilter(ifindex, h)
	}
	if errors.Is(err, unix.ERANGE) {
		return fmt.Errorf("the hook holds as many programs as the kernel allows: remove one of the others (\"bpftool net\" lists them): %w", err)
	}
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }() // unless it was pinned, this detaches
	return pinAside(l, d.linkPath(ifindex, h))
}

// openLink opens the pinned link of a hook. nil: there is none, or it is on
// another device than the one that has this number now, and was removed.
func (d *Dataplane) openLink(ifindex int, h hook) (link.Link, error) {
	return d.openLinkAt(d.linkPath(ifindex, h), ifindex, h)
}

func (d *Dataplane) openLinkAt(path string, ifindex int, h hook) (link.Link, error) {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open pinned link %s: %w", path, err)
	}
	here, err := isOn(l, ifindex, h)
	if err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("look at pinned link %s: %w", path, err)
	}
	if here {
		return l, nil
	}
	defer func() { _ = l.Close() }()
	if err := removeLink(l, path); err != nil {
		return nil, fmt.Errorf("remove link of an interface that is gone: %w", err)
	}
	return nil, nil
}

// isOn tells whether a link is on the interface that has this index in the
// network namespace of the calling thread. What the link itself says is not
// enough: it stays on a device that is moved to another namespace, whose index
// there may be the same, while a new device has got the index here.
func isOn(l link.Link, ifindex int, h hook) (bool, error) {
	info, err := l.Info()
	if err != nil {
		return false, err
	}
	there, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: h.attach})
	if errors.Is(err, unix.ENODEV) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(there.Programs, func(program link.AttachedProgram) bool {
		id, linked := program.LinkID()
		return linked && id == info.ID
	}), nil
}

// removeLink takes a program off its interface, wherever that is by now.
// Somebody else may hold the link open: closing it would not be enough.
func removeLink(l link.Link, path string) error {
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("unpin link: %w", err)
	}
	if err := l.Detach(); err != nil && !errors.Is(err, link.ErrNotSupported) {
		return fmt.Errorf("detach link: %w", err)
	}
	return nil
}

// updateLink puts the hook's program in the place of the link's present one. The
// program's id is asked for once: the kernel's answer is long, and there are many links.
func (d *Dataplane) updateLink(l link.Link, h hook) error {
	program := d.program(h)
	id, known := d.ids.Load(program)
	if !known {
		var err error
		if id, err = programID(program); err != nil {
			return err
		}
		d.ids.Store(program, id)
	}
	return replaceLinked(l, program, id.(ebpf.ProgramID))
}

func updateLink(l link.Link, program *ebpf.Program) error {
	id, err := programID(program)
	if err != nil {
		return err
	}
	return replaceLinked(l, program, id)
}

// replaceLinked puts program, which has this id, in the place of the link's present
// one, in one step.
func replaceLinked(l link.Link, program *ebpf.Program, id ebpf.ProgramID) error {
	held, err := l.Info()
	if err != nil {
		return fmt.Errorf("look at link: %w", err)
	}
	if held.Program == id {
		return nil
	}
	if err := l.Update(program); err != nil {
		return fmt.Errorf("replace program: %w", err)
	}
	return nil
}

func programID(program *ebpf.Program) (ebpf.ProgramID, error) {
	info, err := program.Info()
	if err != nil {
		return 0, fmt.Errorf("look at program: %w", err)
	}
	id, ok := info.ID()
	if !ok {
		return 0, errors.New("look at program: the kernel gives no id")
	}
	return id, nil
}

// Attached tells whether both programs are on an interface of the network
// namespace of the calling thread. They go with the device: one that was made
// anew under the same name and index, with the same addresses, looks no
// different in a plan, and has no programs.
func (d *Dataplane) Attached(ifindex int) (bool, error) {
	unlock, err := lockDir(d.dir)
	if err != nil {
		return false, err
	}
	defer unlock()
	return d.attached(ifindex)
}

// Strays lists the interfaces that are in the maps and not in a plan: living
// mappings kept them when they left it. Applying the plan again drops those that
// are gone, or have no mappings any more.
func (d *Dataplane) Strays(plan policy.Plan) ([]int, error) {
	interfaces, err := readMap[uint32, ifaceValue](d.maps.Ifaces)
	if err != nil {
		return nil, err
	}
	for _, face := range plan.Interfaces {
		delete(interfaces, uint32(face.Index))
	}
	var strays []int
	for ifindex := range interfaces {
		strays = append(strays, int(ifindex))
	}
	slices.Sort(strays)
	return strays, nil
}

// attached is Attached for whoever holds the lock.
func (d *Dataplane) attached(ifindex int) (bool, error) {
	for _, h := range hooks {
		l, err := d.openLink(ifindex, h)
		if err != nil {
			return false, err
		}
		if l != nil {
			_ = l.Close()
			continue
		}
		filter, err := findFilter(ifindex, h)
		if err != nil || filter == nil {
			return false, err
		}
	}
	return true, nil
}

// detach takes both programs off an interface, egress first: while packets
// leave rewritten, answers are still brought back. An interface that is gone is
// no error.
func (d *Dataplane) detach(ifindex int) error {
	var errs []error
	for _, h := range []hook{egressHook, ingressHook} {
		if err := d.detachHook(ifindex, h); err != nil {
			errs = append(errs, fmt.Errorf("detach %s program: %w", h.name, err))
		}
	}
	return errors.Join(errs...)
}

func (d *Dataplane) detachHook(ifindex int, h hook) error {
	l, err := d.openLink(ifindex, h)
	if err != nil {
		return err
	}
	if l == nil {
		return d.detachFilter(ifindex, h)
	}
	defer func() { _ = l.Close() }()
	return removeLink(l, d.linkPath(ifindex, h))
}

// attachments lists the interfaces that have a pinned link, filters of ours or
// an entry in ifaces.
func (d *Dataplane) attachments() ([]int, error) {
	seen := make(map[int]bool)
	var list []int
	add := func(ifindex int) {
		if !seen[ifindex] {
			seen[ifindex] = true
			list = append(list, ifindex)
		}
	}
	entries, err := os.ReadDir(filepath.Join(d.dir, linksDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list attachments: %w", err)
	}
	for _, entry := range entries {
		digits, _, _ := strings.Cut(entry.Name(), "-")
		if ifindex, err := strconv.Atoi(digits); err == nil {
			add(ifindex)
		}
	}
	interfaces, err := readMap[uint32, ifaceValue](d.maps.Ifaces)
	if err != nil {
		return nil, err
	}
	for ifindex := range interfaces {
		add(int(ifindex))
	}
	return list, nil
}

// replacePrograms puts the loaded programs in the place of those attached by an
// earlier start. What is not attached stays so.
func (d *Dataplane) replacePrograms() error {
	list, err := d.attachments()
	if err != nil {
		return err
	}
	var errs []error
	for _, ifindex := range list {
		for _, h := range hooks {
			if err := d.replaceProgram(ifindex, h); err != nil {
				errs = append(errs, fmt.Errorf("replace %s program of interface %d: %w", h.name, ifindex, err))
			}
		}
	}
	return errors.Join(errs...)
}

func (d *Dataplane) replaceProgram(ifindex int, h hook) error {
	l, err := d.openLink(ifindex, h)
	if err != nil {
		return err
	}
	if l != nil {
		defer func() { _ = l.Close() }()
		return d.updateLink(l, h)
	}
	filter, err := findFilter(ifindex, h)
	if err != nil || filter == nil {
		return err
	}
	return replaceFilter(filter, d.program(h))
}
