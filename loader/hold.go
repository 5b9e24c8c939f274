// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"

	"vippin/bpf"
)

// acknowledgeMax is how many mappings the programs take at once, ACKNOWLEDGE_MAX
// in bpf/types.h.
const acknowledgeMax = 512

// acknowledged is where the program reads keys: on the heap, which does not move.
var acknowledged = sync.Pool{New: func() any { return new([acknowledgeMax]flowKey) }}

// hold says which answers the programs mark.
func (d *Dataplane) hold(value bpf.DataplaneHold) error {
	return wrapMap("write map hold", d.maps.Hold.Put(uint32(0), value))
}

// acknowledge sets flags of the mappings at keys of by_public, in place: another
// flow may take a mapping's place between a look and a word. Those that are gone
// are left out.
func (d *Dataplane) acknowledge(keys []flowKey, flags bpf.DataplaneMappingFlags) error {
	room := acknowledged.Get().(*[acknowledgeMax]flowKey)
	defer acknowledged.Put(room)
	for len(keys) > 0 {
		n := copy(room[:], keys)
		told := bpf.DataplaneAcknowledgement{
			Keys: uint64(uintptr(unsafe.Pointer(room))), Count: uint32(n), Flags: uint32(flags),
		}
		looked, err := d.ack.Run(&ebpf.RunOptions{Context: told})
		runtime.KeepAlive(room)
		if err != nil {
			return fmt.Errorf("acknowledge %d mappings: %w", n, err)
		}
		if looked != uint32(n) {
			return fmt.Errorf("acknowledge %d mappings: the program looked at %d", n, int32(looked))
		}
		keys = keys[n:]
	}
	return nil
}

// Passages tells when the first packet left with a VIP of the pin since this router
// became MASTER, and when the first answer came to it, both CLOCK_MONOTONIC. One
// that is earlier than that is of an earlier time as MASTER; 0: never.
func (d *Dataplane) Passages(pin uint32) (out, in time.Duration, err error) {
	if _, err := d.pin(pin); err != nil {
		return 0, 0, err
	}
	var value bpf.DataplanePassage
	if err := d.maps.Passages.Lookup(pin, &value); err != nil {
		return 0, 0, fmt.Errorf("read passages of pin %d: %w", pin, err)
	}
	return time.Duration(value.OutNs), time.Duration(value.InNs), nil
}
