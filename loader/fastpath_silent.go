// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"
)

// How long flows go without a packet through the stack, at most.
const (
	quickPace = 4 * time.Second  // the firewall may change without an event
	calmPace  = 30 * time.Second // it tells of every change
)

// rulesSettle is how long to wait for more before rules that changed are read.
const rulesSettle = 100 * time.Millisecond

// firewallWatch knows what in the firewall changes without an event.
type firewallWatch struct {
	wake chan struct{} // holds one: rules changed

	mu     sync.Mutex
	why    string
	legacy string // iptables' own tables, as they were read last
}

func (w *firewallWatch) say(why string) (was string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	was, w.why = w.why, why
	return was
}

// pace is how long an entry is valid at most, and what in the firewall changes
// without an event; "" when nothing does, or nobody runs Run.
func (f *Fastpath) pace() (pace time.Duration, why string) {
	w := &f.follow.firewall
	w.mu.Lock()
	defer w.mu.Unlock()
	return f.tables.pace(), w.why
}

// rulesChanged takes no chances until the rules have been read.
func (f *Fastpath) rulesChanged() {
	f.follow.firewall.say("rules that have just changed")
	f.tables.setPace(quickPace)
	f.tables.bump()
	wake(f.follow.firewall.wake)
}

// classify reads the firewall and sets the pace, in the network namespace of the
// calling thread. It says how long to leave it at that.
func (f *Fastpath) classify() (again time.Duration) {
	began := time.Now()
	why, err := silentFirewall()
	if err != nil {
		why = "a firewall that cannot be read: " + err.Error()
	}
	if len(f.follow.firewall.wake) > 0 { // changed meanwhile
		return rulesSettle
	}
	if was := f.follow.firewall.say(why); err != nil && was != why {
		f.log.Warn("flows are judged anew every few seconds", "because of", why)
	}
	switch {
	case why == "":
		f.tables.setPace(calmPace)
	case f.tables.pace() != quickPace:
		f.tables.setPace(quickPace)
		f.tables.bump()
	}
	return max(rulesSettle, 20*time.Since(began))
}

// silentFirewall names something in the firewall that can change without an event;
// "": there is nothing.
func silentFirewall() (string, error) {
	legacy, err := legacyTables()
	if err != nil || legacy != "" {
		return legacy, err
	}
	rules, err := readFirewall()
	if err != nil {
		return "", err
	}
	return rules.silent(), nil
}

// pollLegacy has the firewall read when iptables' own tables came or went, which no
// event tells of.
func (f *Fastpath) pollLegacy() {
	legacy, err := legacyTables()
	if err != nil {
		legacy = err.Error()
	}
	w := &f.follow.firewall
	w.mu.Lock()
	changed := w.legacy != legacy
	w.legacy = legacy
	w.mu.Unlock()
	if changed {
		wake(w.wake)
	}
}

// legacyTables names the tables of iptables-legacy in the network namespace of the
// calling thread. Nothing tells of changes in them.
func legacyTables() (string, error) {
	var found []string
	for _, family := range []struct{ command, file string }{
		{"iptables", "/proc/thread-self/net/ip_tables_names"}, {"ip6tables", "/proc/thread-self/net/ip6_tables_names"},
	} {
		names, err := os.ReadFile(family.file)
		if errors.Is(err, fs.ErrNotExist) { // a kernel without it, or it is not loaded
			continue
		}
		if err != nil {
			return "", fmt.Errorf("read the tables of %s-legacy: %w", family.command, err)
		}
		for _, name := range strings.Fields(string(names)) {
			found = append(found, fmt.Sprintf("%s-legacy table %s", family.command, name))
		}
	}
	return strings.Join(found, ", "), nil
}
