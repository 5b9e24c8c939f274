// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"time"

	"vippin/policy"
)

const (
	marksEvery = 500 * time.Millisecond // how often our table of nf_tables is looked for
	marksShown = 10 * time.Minute       // how long status warns of its loss
)

// lostMarks is what status tells of losses of our table.
type lostMarks struct {
	times int
	last  time.Time
	blind bool // the last look failed
}

func (l lostMarks) warnings(now time.Time) []string {
	if l.times == 0 || now.Sub(l.last) > marksShown {
		return nil
	}
	return []string{fmt.Sprintf("the nf_tables table inet vippin was removed or changed, the last time %s ago (%d times so far), and was put back: "+
		"connections that began meanwhile keep the router's own address; "+
		"load your rules without \"flush ruleset\", which nftables.service does when it is restarted", span(now.Sub(l.last)), l.times)}
}

// marksWarnings are those about the configuration's marks, where others are in
// use.
func marksWarnings(d interface{ Tier() string }, config *policy.Config) []string {
	if !strings.HasSuffix(d.Tier(), "+marks") {
		return nil
	}
	return config.MarkWarnings()
}

// lookForMarks notices that somebody has removed the table that tells the
// programs what conntrack knows (on kernels without BTF), and puts it back as a
// newly attached interface is dealt with: living flows keep their source.
func (d *daemon) lookForMarks() {
	if d.state.retry { // the table may not be there for another reason
		return
	}
	lost, err := d.plane.MarksLost()
	if err != nil && !d.state.marks.blind {
		d.log.Warn("cannot look for the nf_tables table inet vippin", "error", err)
	}
	d.state.marks.blind = err != nil
	if !lost {
		return
	}
	d.state.marks.times++
	d.state.marks.last = d.env.now()
	text := "the nf_tables table inet vippin was removed or changed, it is put back"
	d.log.Warn(text + `; load your rules without "flush ruleset"`)
	d.hub.Publish(policy.Event{Kind: "warning", Detail: text})
	d.follow(d.nextPlan())
}
