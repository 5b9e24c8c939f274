// SPDX-License-Identifier: Apache-2.0

//go:build vmsmoke

package smoke

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
)

// loaded tells whether a module is there.
func loaded(t *testing.T, module string) bool {
	t.Helper()
	_, err := os.Stat("/sys/module/" + module)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

// TestKernelModulesLate: vippin is there first, on a kernel that has only just
// booted; conntrack and NAT come as modules when somebody asks for them. Where
// nobody may load modules, vippin says which one it misses.
func TestKernelModulesLate(t *testing.T) {
	for _, module := range []string{"nf_conntrack", "nf_nat"} {
		if loaded(t, module) {
			t.Skipf("%s is loaded already: this wants a kernel that has just booted", module)
		}
	}
	l := newBareLab(t)
	l.serveSources(t)
	const config = `pins: [{vlan: 2, vips: [198.51.100.2, "2001:db8:2::2"]}]`

	setModprobe(t, "/bin/false")
	l.configure(t, config)
	if said, code := l.call("load", "-c", l.config); code != 1 || !strings.Contains(said, "load the module nf_conntrack") {
		t.Errorf("load without a way to get modules: exit %d: %s", code, said)
	}
	if loaded(t, "nf_conntrack") {
		t.Fatal("nf_conntrack is there all the same: the test shows nothing")
	}
	setModprobe(t, "/sbin/modprobe")

	l.start(t, config)
	l.awaitPin(t, "MASTER", func(p pinRow) bool { return p.Role == "MASTER" && p.Enabled })
	if !loaded(t, "nf_conntrack") || loaded(t, "nf_nat") {
		t.Errorf("beside vippin alone: nf_conntrack %v, want true; nf_nat %v, want false", loaded(t, "nf_conntrack"), loaded(t, "nf_nat"))
	}
	l.masquerade(t)
	for _, module := range []string{"nf_conntrack", "nf_nat"} {
		if _, err := os.Stat("/sys/kernel/btf/" + module); err != nil {
			t.Errorf("a module must have BTF of its own: %v", err)
		}
	}
	first := l.openAll(t, vipOf)
	l.tryExplicit(t, 40001, families[0].vip) // NAT's types were not there to be read
	l.verb(t, "pin", "off", "2")
	l.openAll(t, uniqueOf)
	first.unmoved(t, "after the pin was switched off")

	// The next start knows NAT's types as well.
	l.end(t)
	l.launch(t)
	l.awaitDaemon(t)
	first.unmoved(t, "after the daemon was started again")
	l.verb(t, "pin", "on", "2")
	l.openAll(t, vipOf)
	l.tryExplicit(t, 40002, families[0].unique)
	first.unmoved(t, "after the pin was switched on again")
}

// setModprobe says which program the kernel has load modules, until the test ends.
func setModprobe(t *testing.T, program string) {
	t.Helper()
	const path = "/proc/sys/kernel/modprobe"
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(program), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(path, before, 0o644); err != nil {
			t.Error(err)
		}
	})
}
