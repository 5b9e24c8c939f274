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
}

// ParseFIFO reads one line that keepalived writes to its notify FIFO, as
//
//	GROUP "RouterCore" MASTER 0
//	INSTANCE "VI_2" BACKUP 100
func ParseFIFO(line string) (kind, name, state string, priority uint8, err error) {
	line = strings.TrimSpace(line)
	start, end := strings.IndexByte(line, '"'), strings.LastIndexByte(line, '"')
	if start < 0 || end == start {
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
	number, err := strconv.ParseUint(rest[1], 10, 8)
	if err != nil {
		return "", "", "", 0, fmt.Errorf("read keepalived notice %q: priority %q is not 0 to 255", line, rest[1])
	}
	return kind, name, rest[0], uint8(number), nil
}

// FIFO takes keepalived's word: what its FIFO, or a transition script, says.
// Kind is GROUP or INSTANCE, state one of MASTER, BACKUP, FAULT, STOP, DELETED
// and keepalived's events (MASTER_RX_LOWER_PRI, MASTER_PRIORITY,
// BACKUP_PRIORITY). It is the witness of the group of the same name; a GROUP's
// word counts more than an INSTANCE's. Unknown states are passed over.
func (t *Tracker) FIFO(now time.Duration, kind, name, state string, priority uint8) []Change {
	key := fifoKey{kind, name}
	n := notice{kind: kind, state: state, priority: priority, at: now}
	switch state {
	case "MASTER", "MASTER_RX_LOWER_PRI", "MASTER_PRIORITY":
		n.role = policy.RoleMaster
	case "BACKUP", "BACKUP_PRIORITY":
		n.role = policy.RoleBackup
	case "FAULT", "STOP":
		n.role = policy.RoleFault
	case "DELETED":
		delete(t.fifo, key)
		return t.decideNamed(now, name)
	default:
		return nil
	}
	if _, known := t.fifo[key]; !known && len(t.fifo) >= maxNotices {
		t.overflow++
		return nil
	}
	t.fifo[key] = n
	return t.decideNamed(now, name)
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
