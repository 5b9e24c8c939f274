// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// legacyFamily is how iptables-legacy keeps rules of IPv4 or IPv6: offsets into a rule,
// struct ipt_entry or ip6t_entry.
type legacyFamily struct {
	command, file string
	family, level int
	ifaces        int // names in and out, their masks
	inverted      int
	target        int // where its target is, and behind that where the next rule is
	head          int // its own size
}

var legacyFamilies = []legacyFamily{
	{"iptables", "/proc/thread-self/net/ip_tables_names", unix.AF_INET, unix.SOL_IP, 16, 83, 88, 112},
	{"ip6tables", "/proc/thread-self/net/ip6_tables_names", unix.AF_INET6, unix.SOL_IPV6, 64, 132, 140, 168},
}

// legacyTable is a table of iptables-legacy. Nothing tells of changes in it.
type legacyTable struct {
	*legacyFamily
	name string
}

func (t legacyTable) String() string { return fmt.Sprintf("%s-legacy table %s", t.command, t.name) }

// legacyTables are those in the network namespace of the calling thread.
func legacyTables() (found []legacyTable, err error) {
	for i := range legacyFamilies {
		family := &legacyFamilies[i]
		names, err := os.ReadFile(family.file)
		if errors.Is(err, fs.ErrNotExist) { // a kernel without it, or it is not loaded
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the tables of %s-legacy: %w", family.command, err)
		}
		for _, name := range strings.Fields(string(names)) {
			found = append(found, legacyTable{family, name})
		}
	}
	return found, nil
}

// legacyWords name tables.
func legacyWords(tables []legacyTable) string {
	words := make([]string, 0, len(tables))
	for _, t := range tables {
		words = append(words, t.String())
	}
	return strings.Join(words, ", ")
}

// legacyInfo is struct ipt_getinfo, and ip6t_getinfo.
type legacyInfo struct {
	name       [32]byte
	validHooks uint32
	begins     [5]uint32 // of a base chain, by hook: its first rule, and
	ends       [5]uint32 // its last one
	rules      uint32
	size       uint32 // of all, in octets
}

// Of include/uapi/linux/netfilter_ipv4/ip_tables.h and netfilter.h.
const (
	iptGetInfo    = 64
	iptGetEntries = 65
	iptEntriesAt  = 40 // in struct ipt_get_entries
	iptViaIn      = 0x01
	iptViaOut     = 0x02
	hookInput     = 1
	hookOutput    = 3
)

// ask calls getsockopt(2) with a structure that says which table.
func (t legacyTable) ask(what int, answer []byte) error {
	fd, err := unix.Socket(t.family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("open %s-legacy: %w", t.command, err)
	}
	defer func() { _ = unix.Close(fd) }()
	copy(answer, t.name)
	size := uint32(len(answer))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(t.level), uintptr(what),
		uintptr(unsafe.Pointer(&answer[0])), uintptr(unsafe.Pointer(&size)), 0)
	runtime.KeepAlive(answer)
	if errno != 0 {
		return fmt.Errorf("read %s: %w", t, errno)
	}
	return nil
}

func (t legacyTable) info() (info legacyInfo, err error) {
	answer := unsafe.Slice((*byte)(unsafe.Pointer(&info)), unsafe.Sizeof(info))
	return info, t.ask(iptGetInfo, answer)
}

// legacyShape changes when rules come or go, as a rule.
func legacyShape() (shape string, err error) {
	tables, err := legacyTables()
	if err != nil {
		return "", err
	}
	for _, t := range tables {
		info, err := t.info()
		if err != nil {
			return "", err
		}
		shape += fmt.Sprint(t, info)
	}
	return shape, nil
}

// queues tells whether a rule hands forwarded packets to a program that come in and
// leave by these devices (nil: any), and that may be of established connections. Rules
// before it are not considered.
func (t legacyTable) queues(devices *firewallDevices) (bool, error) {
	if t.name == "nat" { // sees first packets alone
		return false, nil
	}
	info, err := t.info()
	if err != nil {
		return false, err
	}
	answer := make([]byte, iptEntriesAt+int(info.size))
	binary.NativeEndian.PutUint32(answer[len(info.name):], info.size)
	if err := t.ask(iptGetEntries, answer); err != nil {
		return false, err
	}
	rules := answer[iptEntriesAt:]
	for at := 0; at+t.head <= len(rules); {
		size := int(binary.NativeEndian.Uint16(rules[at+t.target+2:]))
		if size < t.head || at+size > len(rules) {
			return false, fmt.Errorf("read %s: a rule of %d octets", t, size)
		}
		if !info.isLocal(at) && t.isQueue(rules[at:at+size], devices) {
			return true, nil
		}
		at += size
	}
	return false, nil
}

// isLocal tells whether a rule is of INPUT or OUTPUT.
func (i *legacyInfo) isLocal(at int) bool {
	for _, hook := range []int{hookInput, hookOutput} {
		if i.validHooks>>hook&1 == 1 && at >= int(i.begins[hook]) && at <= int(i.ends[hook]) {
			return true
		}
	}
	return false
}

func (t legacyTable) isQueue(rule []byte, devices *firewallDevices) bool {
	target := int(binary.NativeEndian.Uint16(rule[t.target:]))
	if name, _, _ := legacyExtension(rule, target); name != "NFQUEUE" {
		return false
	}
	for at := t.head; at < target; {
		name, rev, data := legacyExtension(rule, at)
		if data == nil {
			break
		}
		if _, some, known := xtStates(rev, data); name == "conntrack" && t.name != "raw" && known && !some {
			return false
		}
		at += legacyExtensionHead + len(data)
	}
	return t.meets(rule, devices)
}

// legacyExtensionHead is the size of struct xt_entry_match and xt_entry_target, which
// say how long they are with what follows, and have a name of 29 octets and a revision.
const legacyExtensionHead = 32

// legacyExtension is a match or target; data is nil where there is none.
func legacyExtension(rule []byte, at int) (name string, rev uint32, data []byte) {
	if at+legacyExtensionHead > len(rule) {
		return "", 0, nil
	}
	size := int(binary.NativeEndian.Uint16(rule[at:]))
	if size < legacyExtensionHead || at+size > len(rule) {
		return "", 0, nil
	}
	return unix.ByteSliceToString(rule[at+2 : at+31]), uint32(rule[at+31]), rule[at+legacyExtensionHead : at+size]
}

// meets tells whether a rule is of some of these interfaces.
func (t legacyTable) meets(rule []byte, devices *firewallDevices) bool {
	const size = unix.IFNAMSIZ
	if devices == nil {
		return true
	}
	for i, inverted := range []byte{iptViaIn, iptViaOut} {
		want := rule[t.ifaces+i*size:][:size]
		mask := rule[t.ifaces+(2+i)*size:][:size]
		length := len(bytes.TrimRight(mask, "\x00"))
		if rule[t.inverted]&inverted == 0 && len(devices.names) > 0 && !isAmong(want[:length], devices.names) {
			return false
		}
	}
	return true
}
