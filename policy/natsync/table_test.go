// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"runtime"
	"slices"
	"strconv"
	"testing"
)

func recordPorts(records []Record) (ports []uint16) {
	for _, record := range records {
		ports = append(ports, record.Key.Src.Port)
	}
	slices.Sort(ports)
	return ports
}

func TestTableRemembers(t *testing.T) {
	table := NewTable()
	flow := testFlow(1, udp)
	table.Put("a", flow)
	record, ok := table.Get(flow.FlowKey)
	want := Record{Key: flow.FlowKey, To: flow.To, Pin: flow.Pin, Group: core, Peer: "a"}
	if !ok || record != want {
		t.Errorf("got %+v, want %+v", record, want)
	}
	moved := *flow
	moved.To.Port++
	if !table.Has(flow) || table.Has(&moved) {
		t.Error("a flow is known by its public end")
	}
	table.Drop(flow.FlowKey)
	if _, ok := table.Get(flow.FlowKey); ok || table.Len() != 0 {
		t.Error("still there")
	}
}

func TestTableSweeps(t *testing.T) {
	table := NewTable()
	other := testFlow(4, udp)
	other.Group = ""
	for port := range uint16(4) {
		table.Put("a", testFlow(port, udp))
	}
	table.Put("a", other)
	round := table.Begin()
	table.Put("a", testFlow(0, udp)) // told in the bulk
	table.Put("c", testFlow(2, udp)) // told by another router meanwhile
	if got := recordPorts(table.Stale("a", core, round)); !slices.Equal(got, []uint16{1, 3}) {
		t.Errorf("stale: %v", got)
	}
	if table.Told(testFlow(1, udp).FlowKey, round) || !table.Told(testFlow(0, udp).FlowKey, round) {
		t.Error("told is not what is stale")
	}
	if got := table.Stale("c", "", round); got != nil {
		t.Errorf("of no group, of another peer: %v", got)
	}
	if got := recordPorts(table.Stale("a", "", round)); !slices.Equal(got, []uint16{4}) {
		t.Errorf("of no group: %v", got)
	}
}

func TestTableTakeover(t *testing.T) {
	table := NewTable()
	table.Put("a", testFlow(1, udp))
	table.Put("a", testFlow(2, udp))
	table.Own(testFlow(2, udp).FlowKey)
	if got := table.Standing("a"); len(got) != 1 || got[0].Src.Port != 1 {
		t.Errorf("standing: %v", got)
	}
	if taken, held := table.Take(core); taken != 1 || held != 2 || !table.IsTaken(testFlow(1, udp).FlowKey) {
		t.Errorf("taken: %v", taken)
	}
	again, held := table.Take(core)
	another, _ := table.Take("another")
	if again != 0 || held != 2 || another != 0 || table.IsTaken(testFlow(9, udp).FlowKey) || table.Standing("a") != nil || table.Standing("x") != nil {
		t.Error("taken twice")
	}
	if record, _ := table.Get(testFlow(1, udp).FlowKey); !record.Taken || record.Peer != "a" {
		t.Errorf("%+v", record)
	}
	ending := testFlow(3, ipTCP)
	ending.TCPState = 4
	table.Put("a", ending)
	table.Put("a", testFlow(1, udp))
	if got := table.Standing("a"); len(got) != 1 {
		t.Error("a flow that went back to its MASTER does not stand ready")
	}
}

func TestTableKnowsWhatNoPacketProlongs(t *testing.T) {
	table := NewTable()
	for port, proto := range []uint8{udp, ipGRE, ipGRE} {
		table.Put("a", testFlow(uint16(port), proto))
	}
	table.Own(testFlow(0, udp).FlowKey)
	table.Own(testFlow(1, ipGRE).FlowKey)
	if got := table.Fixed(); len(got) != 1 || got[0].Src.Port != 1 {
		t.Errorf("%v", got)
	}
}

// A peer that invents names costs no more memory than names were agreed on.
func TestTableBoundsNames(t *testing.T) {
	n := newNames[string](3)
	for i := range 10 {
		n.of(strconv.Itoa(i))
	}
	if len(n.list) != 4 || n.of("9") != 0 || n.of("2") != 3 || n.list[3] != "2" {
		t.Errorf("%q", n.list)
	}
}

func BenchmarkTableMemory(b *testing.B) {
	const flows = 200_000
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		table := NewTable()
		for i := range flows {
			flow := testFlow(uint16(i), udp)
			flow.Dst.Addr[0] = byte(i >> 16)
			table.Put("a", flow)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/flows, "B/flow")
		runtime.KeepAlive(table)
	}
}
