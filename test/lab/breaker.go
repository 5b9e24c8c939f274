// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// Breaker cuts a router off at one moment, on all segments and the sync link. To
// set links down one after the other takes milliseconds, in which a router that
// is said to be dead still tells its peer what it has just done.
type Breaker struct {
	name    string
	tripped *ebpf.Map // array of one number
	program *ebpf.Program
	links   []link.Link
}

// AddBreaker puts programs on the switches' ports of the router. It needs tcx,
// Linux 6.6.
func (l *Lab) AddBreaker(r *Router) (_ *Breaker, err error) {
	b := &Breaker{name: r.Name}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("put a breaker before %s: %w", r.Name, err), b.Close())
		}
	}()
	if b.tripped, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}); err != nil {
		return nil, err
	}
	if b.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: b.instructions()}); err != nil {
		return nil, err
	}
	type place struct {
		at   *Node
		port string
	}
	var places []place
	for _, s := range l.Segments() {
		at, _, port := l.port(r, s)
		places = append(places, place{at, port})
	}
	if l.syncLink {
		places = append(places, place{l.WANSwitch, r.syncPort()})
	}
	for _, p := range places {
		if err := b.attach(p.at, p.port); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// The verdicts, TC_ACT_UNSPEC and TC_ACT_SHOT of <linux/pkt_cls.h>.
const (
	goesOn int32 = -1
	isLost int32 = 2
)

// instructions lose every frame once the number is not zero.
func (b *Breaker) instructions() asm.Instructions {
	return asm.Instructions{
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, b.tripped.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "goes on"),
		asm.LoadMem(asm.R0, asm.R0, 0, asm.Word),
		asm.JEq.Imm(asm.R0, 0, "goes on"),
		asm.Mov.Imm(asm.R0, isLost),
		asm.Return(),
		asm.Mov.Imm(asm.R0, goesOn).WithSymbol("goes on"),
		asm.Return(),
	}
}

func (b *Breaker) attach(at *Node, port string) error {
	iface, err := at.nl.LinkByName(port)
	if err != nil {
		return fmt.Errorf("find %s in %s: %w", port, at.NS, err)
	}
	return at.Do(func() error {
		l, err := link.AttachTCX(link.TCXOptions{Interface: iface.Attrs().Index, Program: b.program, Attach: ebpf.AttachTCXIngress})
		if err != nil {
			return fmt.Errorf("attach to %s in %s: %w", port, at.NS, err)
		}
		b.links = append(b.links, l)
		return nil
	})
}

// Trip loses from now on whatever the router says. What it hears is not touched.
func (b *Breaker) Trip() error {
	if err := b.tripped.Put(uint32(0), uint32(1)); err != nil {
		return fmt.Errorf("cut %s off: %w", b.name, err)
	}
	return nil
}

// Close takes the breaker away; the router is heard again.
func (b *Breaker) Close() error {
	var errs []error
	for _, l := range b.links {
		errs = append(errs, l.Close())
	}
	if b.program != nil {
		errs = append(errs, b.program.Close())
	}
	if b.tripped != nil {
		errs = append(errs, b.tripped.Close())
	}
	return errors.Join(errs...)
}
