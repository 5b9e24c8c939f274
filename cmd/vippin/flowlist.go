// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"vippin/loader"
	"vippin/loader/conntrack"
	"vippin/policy"
)

// originLocal is the origin of a flow that this router saw first.
const originLocal = "local"

// conntrackKey finds the entry of a mapping: conntrack expects its replies
// from the remote end at the local end.
type conntrackKey struct {
	proto         uint8
	local, remote netip.AddrPort // ICMP: the identifier is in local, remote has port 0
}

// conntrackFacts is what conntrack knows of a flow and the mapping does not.
type conntrackFacts struct {
	key            policy.FlowKey
	packets, bytes *uint64 // of both directions; nil without nf_conntrack_acct
}

type conntrackView map[conntrackKey]conntrackFacts

// dumpConntrack reads the source-translated entries of the whole table: every
// mapping has one, native ones too.
func dumpConntrack(ctx context.Context) (conntrackView, error) {
	conn, err := conntrack.Dial()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	view := make(conntrackView)
	filter := conntrack.Filter{Status: conntrack.SrcNAT, StatusMask: conntrack.SrcNAT}
	return view, conn.Dump(ctx, filter, func(flow *conntrack.Flow) error {
		view.add(flow)
		return nil
	})
}

func (v conntrackView) add(flow *conntrack.Flow) {
	key := conntrackKey{proto: flow.Reply.Proto, local: flow.Reply.Destination(), remote: flow.Reply.Source()}
	if flow.Reply.IsICMP() {
		key.remote = netip.AddrPortFrom(key.remote.Addr(), 0)
	}
	facts := conntrackFacts{key: policy.FlowKey{
		Src: policy.MakeEnd(flow.Orig.Source()), Dst: policy.MakeEnd(flow.Orig.Destination()),
		Zone: flow.Orig.Zone, Proto: flow.Orig.Proto,
	}}
	if flow.Orig.IsICMP() {
		facts.key.Dst.Port = 0
	}
	if orig, reply := flow.OrigCounters, flow.ReplyCounters; orig != nil && reply != nil {
		packets, bytes := orig.Packets+reply.Packets, orig.Bytes+reply.Bytes
		facts.packets, facts.bytes = &packets, &bytes
	}
	v[key] = facts
}

// standing tells where a flow came from, and whether every peer that is there
// has it.
type standing func(policy.FlowKey) (origin string, acked bool)

// alone is the standing of flows without a daemon: nobody knows of peers.
func alone(policy.FlowKey) (origin string, acked bool) { return originLocal, false }

// fastFlows is what the fast path has done for flows, by conntrack's original
// tuple: of zone 0, it takes no others.
type fastFlows map[policy.FlowKey]policy.FastpathFlow

// readFastFlows has nothing where there is no fast path.
func readFastFlows(d dataplane) (fastFlows, error) {
	table, err := d.OpenFastpath()
	if errors.Is(err, loader.ErrNotLoaded) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	flows, err := table.Flows()
	return flows, errors.Join(err, table.Close())
}

// add adds what bypassed conntrack.
func (f fastFlows) add(flow *policy.FlowStatus, key policy.FlowKey) {
	fast, known := f[key]
	if !known {
		return
	}
	flow.Fastpath = true
	flow.Idle = min(flow.Idle, fast.IdleS)
	if flow.Packets != nil && flow.Bytes != nil {
		packets, bytes := *flow.Packets+fast.Packets, *flow.Bytes+fast.Bytes
		flow.Packets, flow.Bytes = &packets, &bytes
	}
}

// flowStatus describes one mapping; now is CLOCK_MONOTONIC.
func (v conntrackView) flowStatus(m policy.Mapping, vlan policy.VLAN, now time.Duration, stands standing, fast fastFlows) policy.FlowStatus {
	flow := policy.FlowStatus{
		VLAN: vlan, Proto: conntrack.ProtoName(m.Proto), Origin: originLocal,
		Remote: m.Remote.String(), Public: m.Public.String(), Local: m.Local.String(),
		Age:  max(now-m.Born, 0).Seconds(),
		Idle: max(now-max(m.Born, m.LastOut, m.LastIn), 0).Seconds(),
	}
	if facts, known := v[conntrackKey{m.Proto, m.Local, m.Remote}]; known {
		flow.Origin, flow.Acked = stands(facts.key)
		flow.Client, flow.Packets, flow.Bytes = facts.key.Src.String(), facts.packets, facts.bytes
		fast.add(&flow, facts.key)
	}
	return flow
}

// listFlows describes every mapping. Without conntrack's word (no right to ask
// it, or another network namespace's) client and counters are left out.
func listFlows(ctx context.Context, e *env, d dataplane, stands standing, yield func(policy.FlowStatus) error) error {
	plan, err := d.Planned()
	if err != nil {
		return fmt.Errorf("list flows: %w", err)
	}
	vlans := make(map[uint32]policy.VLAN, len(plan.Pins))
	for _, pin := range plan.Pins {
		vlans[pin.ID] = pin.VLAN
	}
	view, err := e.conntrack(ctx)
	if err != nil {
		fmt.Fprintf(e.stderr, "vippin: clients and counters are not known: %v\n", err)
	}
	fast, err := readFastFlows(d)
	if err != nil {
		fmt.Fprintf(e.stderr, "vippin: what took the fast path is not counted: %v\n", err)
	}
	now := e.monotonic()
	var stopped error
	err = d.Flows(func(m policy.Mapping) bool {
		stopped = yield(view.flowStatus(m, vlans[m.Pin], now, stands, fast))
		return stopped == nil && ctx.Err() == nil
	})
	if stopped != nil {
		return stopped
	}
	return errors.Join(err, context.Cause(ctx))
}
