// SPDX-License-Identifier: Apache-2.0

package flight

import (
	"time"

	"vippin/policy"
)

// What becomes of a group's flows. All of it belongs to the record that is open;
// without one it is nobody's.

// Passages says when the first packet left with a VIP of a group, and when the
// first answer to one came in; 0: not yet. Earlier reigns' are passed over.
func (r *Recorder) Passages(name string, out, in time.Duration) {
	rec := r.group(name).open
	if rec == nil || rec.role != policy.RoleMaster {
		return
	}
	for _, p := range []struct {
		at    time.Duration
		first *time.Duration
	}{{out, &rec.out}, {in, &rec.in}} {
		if p.at >= rec.began() && (*p.first == 0 || p.at < *p.first) {
			*p.first = p.at
		}
	}
}

// Taken says how many flows stood ready when this router became MASTER, and how
// many of which a peer had told did not.
func (r *Recorder) Taken(name string, at time.Duration, taken, lost int) {
	if rec := r.group(name).open; rec != nil && rec.role == policy.RoleMaster {
		rec.taken = at
		rec.flows.TakenOver, rec.flows.Lost = uint64(taken), uint64(lost)
	}
}

// Spoke says how many flows from before had packets since. What was seen once and
// has ended since stays counted, as far as a later look sees no more.
func (r *Recorder) Spoke(name string, flows uint64) {
	if rec := r.group(name).open; rec != nil && rec.role == policy.RoleMaster {
		rec.flows.SpokeAgain = max(rec.flows.SpokeAgain, flows)
	}
}

// Normalised says that flows which were taken over got their ordinary timeouts.
func (r *Recorder) Normalised(name string, at time.Duration, flows int) {
	if rec := r.group(name).open; rec != nil && flows > 0 {
		rec.normalised = at
		rec.flows.Normalised += uint64(flows)
	}
}

// Resets says how many TCP RSTs this router has sent from VIPs of a group since
// it can be known.
func (r *Recorder) Resets(name string, total uint64) {
	g := r.group(name)
	rec := g.open
	g.resets = reading{total: total, read: true}
	if rec == nil || rec.role != policy.RoleMaster {
		return
	}
	if !rec.resets.read || total < rec.resets.total { // or it began anew
		rec.resets = g.resets
	}
	rec.flows.Resets = total - rec.resets.total
}

// ResetsHeld says how many more segments were kept from being answered by a RST. Of
// which group is not known: every takeover that is being told gets all.
func (r *Recorder) ResetsHeld(more uint64) {
	for _, g := range r.groups {
		if g.open != nil && g.open.role == policy.RoleMaster {
			g.open.flows.ResetsHeld += more
		}
	}
}
