// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"vippin/policy"
)

// maxNotices bounds how many names keepalived may tell us of.
const maxNotices = 8192

type fifoKey struct{ kind, name string }

// notice is the last word of keepalived about one instance or sync group.
type notice struct {
	kind     string
	state    string // as keepalived wrote it
	role     policy.Role
	priority uint8
	at       time.Duration
	script   bool // a transition script said so
}

// fifoRoles are keepalived's words and what they say of the role. Those in the
// form X_PRIORITY and MASTER_RX_LOWER_PRI come without a transition; DELETED
// ends the witness.
var fifoRoles = map[string]policy.Role{
	"MASTER": policy.RoleMaster, "MASTER_RX_LOWER_PRI": policy.RoleMaster, "MASTER_PRIORITY": policy.RoleMaster,
	"BACKUP": policy.RoleBackup, "BACKUP_PRIORITY": policy.RoleBackup,
	"FAULT": policy.RoleFault, "STOP": policy.RoleFault, fifoDeleted: policy.RoleFault,
}

const fifoDeleted = "DELETED"

// ParseFIFO reads one line that keepalived writes to its notify FIFO, as
//
//	GROUP "RouterCore" MASTER 0
//	INSTANCE "VI_2" BACKUP 100
func ParseFIFO(line string) (kind, name, state string, priority uint8, err error) {
	line = strings.TrimSpace(line)
	start, end := strings.IndexByte(line, '"'), strings.LastIndexByte(line, '"')
	if start < 0 || end <= start+1 {
		return "", "", "", 0, fmt.Errorf("read keepalived notice %q: no name in double quotes", line)
	}
	kind, name = strings.TrimSpace(line[:start]), line[start+1:end]
	if kind != "GROUP" && kind != "INSTANCE" {
		return "", "", "", 0, fmt.Errorf("read keepalived notice %q: %q is neither GROUP nor INSTANCE", line, kind)
	}
	rest := strings.Fields(line[end+1:])
	if len(rest) != 2 {
		return "", "", "", 0, fmt.Errorf("read keepalived notice %q: no state and priority after the name", line)
	}
	if _, known := fifoRoles[rest[0]]; !known {
		return "", "", "", 0, fmt.Errorf("read keepalived notice %q: unknown state %q", line, rest[0])
	}
	number, err := strconv.ParseUint(rest[1], 10, 8)
	if err != nil {
		return "", "", "", 0, fmt.Errorf("read keepalived notice %q: priority %q is not 0 to 255", line, rest[1])
	}
	return kind, name, rest[0], uint8(number), nil
}

// FIFO takes keepalived's word: what its FIFO says, in the words of ParseFIFO. It is
// the witness of the group of the same name; a GROUP's word counts more than an
// INSTANCE's. Unknown states are passed over.
func (t *Tracker) FIFO(now time.Duration, kind, name, state string, priority uint8) []Change {
	return t.notify(now, kind, name, state, priority, false)
}

// Script takes the same from a transition script.
func (t *Tracker) Script(now time.Duration, kind, name, state string, priority uint8) []Change {
	return t.notify(now, kind, name, state, priority, true)
}

func (t *Tracker) notify(now time.Duration, kind, name, state string, priority uint8, script bool) []Change {
	key := fifoKey{kind, name}
	role, known := fifoRoles[state]
	switch {
	case !known:
		return nil
	case state == fifoDeleted:
		delete(t.fifo, key)
		return t.decideNamed(now, name)
	}
	if _, known := t.fifo[key]; !known && len(t.fifo) >= maxNotices {
		t.overflow++
		return nil
	}
	t.fifo[key] = notice{kind: kind, state: state, role: role, priority: priority, at: now, script: script}
	return t.decideNamed(now, name)
}

// by names who said it.
func (n notice) by() string {
	if n.script {
		return "a transition script"
	}
	return "keepalived"
}

func (t *Tracker) decideNamed(now time.Duration, name string) []Change {
	for _, g := range t.order {
		if g.Name == name {
			return t.decide(now, g)
		}
	}
	return nil
}

// notice is keepalived's word about a group, if there is one.
func (t *Tracker) notice(g *group) (notice, bool) {
	for _, kind := range []string{"GROUP", "INSTANCE"} {
		if n, ok := t.fifo[fifoKey{kind, g.Name}]; ok {
			return n, true
		}
	}
	return notice{}, false
}
