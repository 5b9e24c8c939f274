// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"vippin/policy"
)

// How long flows go without a packet through the stack, at most.
const (
	quickPace = 4 * time.Second  // the firewall may change without an event
	calmPace  = 30 * time.Second // it tells of every change
)

// rulesSettle is how long to wait for more before rules that changed are read.
const rulesSettle = 100 * time.Millisecond

// firewallWatch knows what in the firewall changes without an event, and what in it has
// to see every packet.
type firewallWatch struct {
	wake    chan struct{} // holds one: rules changed
	reading sync.Mutex    // held while rules are read and until it is done what they ask for

	mu      sync.Mutex
	devices *firewallDevices // that packets of the fast path come in and leave by; nil: not known yet
	why     string
	queues  string
	legacy  string // the shape of iptables' own tables, as it was last
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

// queues names a rule that hands packets of established connections to a program: as
// long as there is one the fast path is closed. "": there is none.
func (f *Fastpath) queues() string {
	w := &f.follow.firewall
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.queues
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
	found, err := f.readRules()
	why := found.why()
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

// readRules reads the firewall of the calling thread's network namespace, and closes
// the fast path while rules hand packets to a program that the stack would show it. What
// cannot be read leaves that as it is.
func (f *Fastpath) readRules() (firewallFindings, error) {
	w := &f.follow.firewall
	w.reading.Lock()
	defer w.reading.Unlock()
	w.mu.Lock()
	devices := w.devices
	w.mu.Unlock()
	found, err := readFindings(devices)
	if err != nil {
		return found, err
	}
	w.mu.Lock()
	was := w.queues
	w.queues = found.queues
	w.mu.Unlock()
	f.tables.bar(found.queues != "")
	switch {
	case found.queues != "" && found.queues != was:
		f.log.Warn("the fast path is closed: a program has to see every packet", "because of", found.queues)
	case found.queues == "" && was != "":
		f.log.Info("no program has to see every packet any more")
	}
	return found, nil
}

// meetRules has the firewall read for the devices that take part, before they do.
func (f *Fastpath) meetRules(scene *fastScene, devices []*fastDevice) {
	meets := scene.met(devices)
	w := &f.follow.firewall
	w.mu.Lock()
	same := w.devices != nil && slices.Equal(w.devices.names, meets.names) && slices.Equal(w.devices.numbers, meets.numbers)
	w.devices = meets
	w.mu.Unlock()
	if same {
		return
	}
	if _, err := f.readRules(); err != nil {
		f.log.Warn("whether rules hand packets to a program is not known", "error", err)
	}
	wake(w.wake)
}

// met are the interfaces that rules know packets of these devices by, as of VLANs on
// them, and of what those are in.
func (s *fastScene) met(devices []*fastDevice) *firewallDevices {
	numbers := make(map[int]bool)
	for _, device := range devices {
		if device.Refused != "" {
			continue
		}
		for ifindex := range device.places {
			for link := s.links[ifindex]; link != nil && !numbers[link.Attrs().Index]; link = s.links[link.Attrs().MasterIndex] {
				numbers[link.Attrs().Index] = true
			}
		}
	}
	met := &firewallDevices{}
	for _, ifindex := range slices.Sorted(maps.Keys(numbers)) {
		met.add(s.links[ifindex].Attrs().Name, ifindex)
	}
	return met
}

// why is what changes without an event; "": nothing does.
func (found *firewallFindings) why() string {
	if found.meters != "" {
		return found.meters + policy.FastpathMeters
	}
	return found.silent
}

// readFindings finds what in the firewall matters to packets of these devices.
func readFindings(devices *firewallDevices) (found firewallFindings, err error) {
	legacy, err := legacyTables()
	if err != nil {
		return found, err
	}
	rules, err := readFirewall()
	switch {
	case err == nil:
		found = rules.look(devices)
	case len(legacy) == 0: // else there may be no nf_tables at all
		return found, err
	}
	if len(legacy) > 0 {
		found.silent = legacyWords(legacy)
	}
	for _, table := range legacy {
		queues, err := table.queues(devices)
		if err != nil {
			return found, err
		}
		if queues && found.queues == "" {
			found.queues = fmt.Sprintf("rule with NFQUEUE in %s", table)
		}
	}
	return found, nil
}

// pollLegacy has the firewall read when iptables' own tables came or went or have other
// rules, which no event tells of.
func (f *Fastpath) pollLegacy() {
	legacy, err := legacyShape()
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
