// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"vippin/test/lab"
)

// arm is one way to set the two routers up.
type arm struct {
	name       string
	masquerade lab.Masquerade
	conntrackd *lab.Conntrackd
	vippin     bool
	strict     bool // a connection's first answer waits for the peer
	alone      bool // the peer's daemon is not there
}

// arms are in the order of the tables.
var arms = []arm{
	{name: "vippin", masquerade: lab.MasqueradeNFT, vippin: true},
	{name: "strict", masquerade: lab.MasqueradeNFT, vippin: true, strict: true},
	{name: "strict-alone", masquerade: lab.MasqueradeNFT, vippin: true, strict: true, alone: true},
	{name: "conntrackd", masquerade: lab.MasqueradeSNAT, conntrackd: &lab.Conntrackd{}},
	{name: "conntrackd-t", masquerade: lab.MasqueradeSNAT, conntrackd: &lab.Conntrackd{Shorten: true}},
	{name: "direct", masquerade: lab.MasqueradeSNAT, conntrackd: &lab.Conntrackd{Direct: true}},
	{name: "direct-t", masquerade: lab.MasqueradeSNAT, conntrackd: &lab.Conntrackd{Direct: true, Shorten: true}},
	{name: "masquerade", masquerade: lab.MasqueradeNFT},
}

// armNames are all names; mainArms leave the -t variants out, which differ only
// after a minute, and the strict ones, which differ only in the youngest flows;
// agedArms leave these out.
func armNames() (names []string) {
	for _, a := range arms {
		names = append(names, a.name)
	}
	return names
}

var (
	mainArms        = []string{"vippin", "conntrackd", "direct", "masquerade"}
	replicatingArms = []string{"vippin", "conntrackd", "direct"}
	agedArms        = []string{"vippin", "conntrackd", "conntrackd-t", "direct", "direct-t", "masquerade"}
	youngArms       = []string{"strict", "vippin", "conntrackd", "direct"}
	latencyArms     = []string{"masquerade", "vippin", "strict", "strict-alone"}
)

// armNamed finds an arm; an unknown name has been refused before.
func armNamed(name string) arm {
	for _, a := range arms {
		if a.name == name {
			return a
		}
	}
	return arm{name: name}
}

func (a arm) replicates() bool { return a.vippin && !a.alone || a.conntrackd != nil }

// external tells whether the standby's kernel gets the flows only at a takeover.
func (a arm) external() bool { return a.conntrackd != nil && !a.conntrackd.Direct }

// start starts the arm's daemons on both routers.
func (a arm) start(ctx context.Context, b *bed) error {
	if a.vippin {
		return startVippin(ctx, b)
	}
	if a.conntrackd == nil {
		return nil
	}
	for _, r := range b.Routers() {
		p, err := b.StartConntrackd(ctx, r, *a.conntrackd)
		if err != nil {
			return err
		}
		b.daemons[r.Name] = p
	}
	return nil
}

// group are the arm's lines of keepalived's sync group.
func (a arm) group(r *lab.Router) string {
	if a.conntrackd == nil {
		return ""
	}
	return r.NotifyConntrackd()
}

// vippinConfig takes the VIPs, our own address, the mode, the peer's name, address
// and key.
const vippinConfig = `
groups:
  - {name: RouterCore, vrids: [20]}
pins:
  - {vlan: 2, interface: wan0, vips: [%s], group: RouterCore}
sync:
  listen: %s:7443
  scope: pinned
  mode: %s
  peers: [{name: %s, address: "%s:7443", key: "%s"}]
`

func startVippin(ctx context.Context, b *bed) error {
	keys := make(map[string]string)
	for _, r := range b.Routers() {
		if err := os.MkdirAll(r.StateDir(), 0o700); err != nil {
			return fmt.Errorf("make the state folder of %s: %w", r.Name, err)
		}
		out, complaint, exit := b.Vippin(r, "keygen", "--state-dir", r.StateDir())
		if exit != 0 {
			return fmt.Errorf("make a key on %s: exit %d: %s", r.Name, exit, strings.TrimSpace(complaint))
		}
		keys[r.Name] = strings.TrimSpace(out)
	}
	vip := lab.WAN.VIP4.String()
	if b.c.Family == "ipv6" {
		vip = `"` + lab.WAN.VIP6.String() + `"`
	}
	routers, mode := b.Routers(), "async"
	if b.arm.strict {
		mode = "strict"
	}
	if b.arm.alone {
		routers = routers[:1]
	}
	for _, r := range routers {
		peer := b.peerOf(r)
		p, err := b.StartVippin(r, fmt.Sprintf(vippinConfig, vip, r.SyncAddr(), mode, peer.Name, peer.SyncAddr(), keys[peer.Name]))
		if err != nil {
			return err
		}
		b.daemons[r.Name] = p
		if err := b.AwaitVippin(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// peerState is the part of "vippin peers -j" that is read here.
type peerState struct {
	Name     string `json:"name"`
	State    string `json:"state"`
	LagFlows int    `json:"lag_flows"`
}

func (b *bed) vippinPeer(r *lab.Router) (peerState, error) {
	out, complaint, exit := b.Vippin(r, "peers", "-j")
	if exit != 0 && exit != 3 {
		return peerState{}, fmt.Errorf("vippin peers on %s: exit %d: %s", r.Name, exit, strings.TrimSpace(complaint))
	}
	var peers []peerState
	if err := json.Unmarshal([]byte(out), &peers); err != nil {
		return peerState{}, fmt.Errorf("read vippin peers of %s: %w", r.Name, err)
	}
	if len(peers) != 1 {
		return peerState{}, fmt.Errorf("vippin peers on %s: %d peers, want one", r.Name, len(peers))
	}
	return peers[0], nil
}

// holds is how many flows a router has from its peer, or for it: in the
// kernel's table, or in conntrackd's external cache.
func (b *bed) holds(ctx context.Context, r *lab.Router) (int, error) {
	if b.arm.external() {
		return b.externalCache(ctx, r)
	}
	return tracked(r)
}

// tracked is the number of entries in a router's conntrack table.
func tracked(r *lab.Router) (n int, err error) {
	err = r.Do(func() error {
		text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
		if err != nil {
			return fmt.Errorf("count the conntrack entries of %s: %w", r.Name, err)
		}
		n, err = strconv.Atoi(strings.TrimSpace(string(text)))
		return err
	})
	return n, err
}

var externalCacheSize = regexp.MustCompile(`cache external:\s+current active connections:\s+(\d+)`)

func (b *bed) externalCache(ctx context.Context, r *lab.Router) (int, error) {
	out, err := r.Conntrackd(ctx, "-s")
	if err != nil {
		return 0, err
	}
	match := externalCacheSize.FindStringSubmatch(out)
	if match == nil {
		return 0, fmt.Errorf("read conntrackd -s of %s: no external cache in %q", r.Name, out)
	}
	return strconv.Atoi(match[1])
}

var errBehind = errors.New("the peer does not have every flow")

// awaitReplicated waits until the standby has so many flows, and until nothing
// of them is under way.
func (b *bed) awaitReplicated(ctx context.Context, flows int) error {
	if !b.arm.replicates() {
		return nil
	}
	have, lag := 0, peerState{}
	for start := time.Now(); time.Since(start) < replicationPatience; {
		var err error
		if have, err = b.holds(ctx, b.RB); err != nil {
			return err
		}
		if b.arm.vippin {
			if lag, err = b.vippinPeer(b.RA); err != nil {
				return err
			}
		}
		if have >= flows && (!b.arm.vippin || lag.State == "up" && lag.LagFlows == 0) {
			return pause(ctx, settleTime)
		}
		if err := pause(ctx, askAgain); err != nil {
			return err
		}
	}
	b.notes = append(b.notes, fmt.Sprintf("%v: %d of %d after %s %+v%s", errBehind, have, flows, replicationPatience, lag, b.unpinned()))
	return nil // a fact about the arm, not a fault of the harness
}

const (
	replicationPatience = 20 * time.Second
	settleTime          = 500 * time.Millisecond
	askAgain            = 100 * time.Millisecond // asking costs the daemon processor time, too
)

// pause waits, or fails when the run is to end.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

var commitTook = regexp.MustCompile(`commit has taken (\d+)\.(\d+) seconds`)

// commitTime is what conntrackd says its last commit took; 0 = there was none.
func commitTime(log string) time.Duration {
	all := commitTook.FindAllStringSubmatch(log, -1)
	if all == nil {
		return 0
	}
	last := all[len(all)-1]
	seconds, _ := strconv.Atoi(last[1])
	micros, _ := strconv.Atoi((last[2] + "000000")[:6])
	return time.Duration(seconds)*time.Second + time.Duration(micros)*time.Microsecond
}
