// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
)

// tracked makes a conntrack entry for the flow of a mapping: masqueraded from
// 192.168.1.10 to the local end.
func tracked(t *testing.T, conn *conntrack.Conn, key flowKey) {
	t.Helper()
	reply := replyTuple(&key, 0)
	orig, ok := reply.Inverse()
	if !ok {
		t.Fatalf("%v has no inverse", reply)
	}
	orig.Src = netip.MustParseAddr("192.168.1.10")
	entry := conntrack.Entry{
		Orig: orig, NATSrc: keySelf(&key), Timeout: time.Hour, Status: conntrack.SeenReply | conntrack.Assured,
	}
	if key.Proto == unix.IPPROTO_TCP {
		entry.TCP = &conntrack.TCP{State: conntrack.TCPEstablished}
	}
	results, err := conn.Create([]conntrack.Entry{entry})
	if err := errors.Join(append(results, err)...); err != nil {
		t.Fatalf("create conntrack entry: %v", err)
	}
}

func untrack(t *testing.T, conn *conntrack.Conn, key flowKey) {
	t.Helper()
	results, err := conn.Delete([]conntrack.Ref{{Orig: replyTuple(&key, 0)}})
	if err := errors.Join(append(results, err)...); err != nil {
		t.Fatalf("delete conntrack entry: %v", err)
	}
}

func has(t *testing.T, m *ebpf.Map, key flowKey) bool {
	t.Helper()
	value := make([]byte, m.ValueSize())
	there, err := found(m.Lookup(key, value))
	if err != nil {
		t.Fatal(err)
	}
	return there
}

// whole tells whether both halves of a mapping are there; it fails on one.
func whole(t *testing.T, d *Dataplane, key flowKey, end publicEnd) bool {
	t.Helper()
	local, public := has(t, d.maps.ByLocal, key), has(t, d.maps.ByPublic, publicKey(key, &end))
	return local && public
}

func anyHalf(t *testing.T, d *Dataplane, key flowKey, end publicEnd) bool {
	t.Helper()
	return has(t, d.maps.ByLocal, key) || has(t, d.maps.ByPublic, publicKey(key, &end))
}

// alone inserts a note of an unpinned flow.
func alone(t *testing.T, d *Dataplane, port uint16) flowKey {
	t.Helper()
	key := newFlowKey(1, 6, netip.AddrPortFrom(addrs("198.51.100.3")[0], port), netip.MustParseAddrPort("203.0.113.9:443"))
	if err := d.maps.Unpinned.Put(key, leftAlone{Conntrack: 99, Pin: 1, Reason: pinBornBefore}); err != nil {
		t.Fatal(err)
	}
	return key
}

func stampOut(t *testing.T, d *Dataplane, key flowKey, end publicEnd) {
	t.Helper()
	end.LastOutNs = uint64(monotonic() + patience) // the packet comes when the event has been read
	if err := d.maps.ByLocal.Put(key, end); err != nil {
		t.Fatal(err)
	}
}

// startCollect runs Collect until the test ends or stop is called.
func startCollect(t *testing.T, d *Dataplane, ns netns.NsHandle, log *logBuffer) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- inNamespace(ns, func() error { return d.Collect(ctx, log.logger()) })
	}()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("collect: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// TestCollect: mappings and notes go after their conntrack entries, and only
// those.
func TestCollect(t *testing.T) {
	ns := enterNamespace(t)
	ifindex := addVeth(t, "wan0", "wan1")
	addAddr(t, up(t, "wan0"), "198.51.100.3/24")
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	mustApply(t, d, onePin(ifindex, "wan0", true))
	conn, err := conntrack.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := os.WriteFile(eventsPath, []byte("0"), 0o644); err != nil {
		t.Fatal(err)
	}
	lives, livesEnd := testMapping(t, d, 4001)
	missing, missingEnd := testMapping(t, d, 4002) // no entry from the beginning
	halfLocal, halfLocalEnd := testMapping(t, d, 4003)
	halfPublic, halfPublicEnd := testMapping(t, d, 4004)
	held, heldEnd := testMapping(t, d, 4007) // an unload was stopped half-way
	nowhere := localEnd{Port: held.SelfPort, Pin: 1}
	nowhere.Addr.Word = addrWords(nowhere4)
	if err := d.maps.ByPublic.Put(publicKey(held, &heldEnd), nowhere); err != nil {
		t.Fatal(err)
	}
	noteLives, noteMissing := alone(t, d, 4005), alone(t, d, 4006)
	for _, key := range []flowKey{lives, halfLocal, held, noteLives} {
		tracked(t, conn, key)
	}
	if err := errors.Join(d.maps.ByPublic.Delete(publicKey(halfLocal, &halfLocalEnd)), d.maps.ByLocal.Delete(halfPublic)); err != nil {
		t.Fatal(err)
	}
	var log logBuffer
	stop := startCollect(t, d, ns, &log)
	await(t, "the mapping without an entry goes, and the note", func() bool {
		return !anyHalf(t, d, missing, missingEnd) && !has(t, d.maps.Unpinned, noteMissing)
	})
	await(t, "half a mapping is completed, or removed", func() bool {
		return whole(t, d, halfLocal, halfLocalEnd) && !anyHalf(t, d, halfPublic, halfPublicEnd)
	})
	var local localEnd
	if err := d.maps.ByPublic.Lookup(publicKey(held, &heldEnd), &local); err != nil || localKey(held, &local) != held || !has(t, d.maps.ByLocal, held) {
		t.Errorf("a held mapping was not restored: %+v, %v", local, err)
	}
	contains(t, log.String(), "switched conntrack events on")
	if text, err := os.ReadFile(eventsPath); err != nil || string(bytes.TrimSpace(text)) != "1" {
		t.Errorf("nf_conntrack_events %s, %v", text, err)
	}

	// Born while events were on: their end is an event.
	dies, diesEnd := testMapping(t, d, 4011)
	reborn, rebornEnd := testMapping(t, d, 4012)   // its tuple is taken up again, without a packet
	revived, revivedEnd := testMapping(t, d, 4013) // a packet goes out after the event
	noteDies := alone(t, d, 4014)
	for _, key := range []flowKey{dies, reborn, revived, noteDies} {
		tracked(t, conn, key)
	}
	start := time.Now()
	for _, key := range []flowKey{dies, reborn, revived, noteDies} {
		untrack(t, conn, key)
	}
	tracked(t, conn, reborn)
	stampOut(t, d, revived, revivedEnd)
	await(t, "the mapping whose entry was destroyed goes, and the note", func() bool {
		return !anyHalf(t, d, dies, diesEnd) && !has(t, d.maps.Unpinned, noteDies)
	})
	if took := time.Since(start); took < dyingGrace {
		t.Errorf("it went after %v, within the grace time of %v", took, dyingGrace)
	}
	for name, is := range map[string]bool{
		"living": whole(t, d, lives, livesEnd), "completed": whole(t, d, halfLocal, halfLocalEnd),
		"reborn": whole(t, d, reborn, rebornEnd), "revived": whole(t, d, revived, revivedEnd),
		"living note": has(t, d.maps.Unpinned, noteLives),
	} {
		if !is {
			t.Errorf("the %s one is gone", name)
		}
	}
	stop()
}

// TestSweep is the same at one go, as "load" does it.
func TestSweep(t *testing.T) {
	enterNamespace(t)
	ifindex := addVeth(t, "wan0", "wan1")
	addAddr(t, up(t, "wan0"), "198.51.100.3/24")
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	mustApply(t, d, onePin(ifindex, "wan0", true))
	conn, err := conntrack.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	lives, livesEnd := testMapping(t, d, 4001)
	tracked(t, conn, lives)
	young, youngEnd := testMapping(t, d, 4002) // no entry, but a packet just now
	stampOut(t, d, young, youngEnd)
	for port := range uint16(300) { // more than a batch
		testMapping(t, d, 5000+port)
	}
	alone(t, d, 4003)
	if removed, err := d.Sweep(); err != nil || removed != 301 {
		t.Errorf("removed %d, %v, want 301", removed, err)
	}
	if !whole(t, d, lives, livesEnd) || !whole(t, d, young, youngEnd) {
		t.Error("a living mapping is gone")
	}
}

// TestRemoveMeetsPacket: what a packet used after conntrack was asked stays.
func TestRemoveMeetsPacket(t *testing.T) {
	enterNamespace(t)
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	c := &collector{d: d}
	key, end := testMapping(t, d, 4001)
	was := &candidate{doomed: doomed{key: key}, end: end}
	stampOut(t, d, key, end)
	if gone, err := c.remove(was); err != nil || gone || !whole(t, d, key, end) {
		t.Errorf("removed a mapping that was just used: %v, %v", gone, err)
	}
	note := alone(t, d, 4002)
	stale := &candidate{doomed: doomed{key: note, alone: true}, note: leftAlone{Conntrack: 98, Pin: 1, Reason: pinBornBefore}}
	if gone, err := c.remove(stale); err != nil || gone || !has(t, d.maps.Unpinned, note) {
		t.Errorf("removed the note of another flow: %v, %v", gone, err)
	}
	// The public end of one mapping is another flow's by now: it stays.
	other := localEnd{Port: 1, Pin: 1}
	other.Addr.Word = addrWords(addrs("198.51.100.77")[0])
	if err := d.maps.ByPublic.Put(publicKey(key, &end), other); err != nil {
		t.Fatal(err)
	}
	var now publicEnd
	if err := d.maps.ByLocal.Lookup(key, &now); err != nil {
		t.Fatal(err)
	}
	if gone, err := c.remove(&candidate{doomed: doomed{key: key}, end: now}); err != nil || !gone {
		t.Errorf("not removed: %v, %v", gone, err)
	}
	if has(t, d.maps.ByLocal, key) || !has(t, d.maps.ByPublic, publicKey(key, &end)) {
		t.Error("another flow's public end was given free")
	}
}
