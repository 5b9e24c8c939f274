// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"testing"
)

// TestTierChanges: the programs of one tier take over from those of the other
// (somebody hides BTF from vippin, or shows it again), and no living flow moves,
// not even one that has never been answered.
func TestTierChanges(t *testing.T) {
	l := newLab(t)
	l.serve(t)
	dir := testBPFFS(t)
	load := func(noBTF bool) *Dataplane {
		t.Helper()
		d := mustLoad(t, Options{BPFFS: dir, noBTF: noBTF})
		l.plan(t, d, true)
		if marked := nftList(t, "inet", "vippin") != ""; marked != noBTF {
			t.Errorf("there is a table: %v, without BTF: %v", marked, noBTF)
		}
		return d
	}
	// Answers of the server's UDP are lost on the way: such flows stay unanswered.
	nft(t, `table ip lost { chain c { type filter hook prerouting priority raw; iifname "wan0" udp sport 7777 drop; }; }`)
	old, oneWay := l.dial(t, "old", "tcp4", "192.168.1.10:41000"), l.dial(t, "one-way", "udp4", "192.168.1.10:41001")
	send := func() {
		t.Helper()
		before := l.heard("one-way")
		if _, err := oneWay.conn.Write([]byte("one-way")); err != nil {
			t.Fatal(err)
		}
		await(t, "a datagram", func() bool { return l.heard("one-way") > before })
	}
	mustAsk(t, old)
	send()
	names := []string{"first", "second", "third"}
	flows := []*client{old}
	for i, noBTF := range []bool{false, true, false} {
		d := load(noBTF)
		mustAsk(t, flows...)
		send()
		send()
		flow := l.dial(t, names[i], "tcp4", fmt.Sprintf("192.168.1.11:%d", 42000+i))
		mustAsk(t, flow)
		flows = append(flows, flow)
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"old": unique, "one-way": unique, "first": vip, "second": vip, "third": vip} {
		if got := l.source(t, name).Addr().String(); got != want {
			t.Errorf("%s came from %s, want %s", name, got, want)
		}
	}
}

// heard counts the datagrams or lines of a flow.
func (l *lab) heard(name string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, times := range l.seen[name] {
		n += times
	}
	return n
}
