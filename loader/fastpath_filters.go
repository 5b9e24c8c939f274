// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// warnOfFilters tells which tc programs and filters of others, on a device and the
// VLANs on it, are passed by: policers and counters miss packets. What they drop
// is dropped all the same as soon as the flow takes the stack again.
func (s *fastScene) warnOfFilters(d *fastDevice) {
	var warnings []string
	for ifindex := range d.places {
		for _, h := range hooks {
			for _, name := range s.othersAt(ifindex, h) {
				warnings = append(warnings, fmt.Sprintf("%s at tc %s of %s does not see what takes the fast path",
					name, h.name, s.links[ifindex].Attrs().Name))
			}
		}
	}
	slices.Sort(warnings)
	d.Warnings = append(d.Warnings, warnings...)
}

// othersAt names what others have at a hook.
func (s *fastScene) othersAt(ifindex int, h hook) (names []string) {
	there, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: h.attach})
	if err == nil { // else there is no tcx
		for _, program := range there.Programs {
			if name := programName(program.ID); !isOurProgram(name) {
				names = append(names, "the program "+name)
			}
		}
	}
	if kinds := s.qdiscs[ifindex]; !slices.Contains(kinds, "clsact") && (h.parent != ingressHook.parent || !slices.Contains(kinds, "ingress")) {
		return names
	}
	list, err := filters(ifindex, h)
	if err != nil {
		return names
	}
	for _, filter := range list {
		if ours, ok := filter.(*netlink.BpfFilter); !ok || !isOurProgram(ours.Name) {
			names = append(names, "a filter ("+filter.Type()+")")
		}
	}
	return slices.Compact(names)
}

// isOurProgram goes by the names in bpf/*.bpf.c.
func isOurProgram(name string) bool { return strings.HasPrefix(name, "vippin_") }

// programName is a program's name as the kernel shortens it, or its number.
func programName(id ebpf.ProgramID) string {
	number := fmt.Sprint(uint32(id))
	program, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return number
	}
	info, err := program.Info()
	if err := errors.Join(err, program.Close()); err != nil || info.Name == "" {
		return number
	}
	return info.Name
}
