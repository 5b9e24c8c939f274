// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"testing"
	"time"
)

const (
	eagerPackets = 16
	far          = 1 << 30
)

var (
	notLiberal     = refused(FastpathFastRefusalREFUSED_NOT_LIBERAL)
	notEstablished = refused(FastpathFastRefusalREFUSED_NOT_ESTABLISHED)
	notForFlags    = refused(FastpathFastRefusalREFUSED_PACKET)
)

// A TCP flow is asked for once it has sent enough, once in a second at most, and
// learnt once conntrack takes whatever sequence number comes.
func TestLearnsTCP(t *testing.T) {
	l := newLearnLab(t)
	for _, ipv6 := range []bool{false, true} {
		l.clearEager(t) // flows may share a place
		c := l.connection(t, ipv6, 5555)
		l.expect(t, "SYN", notForFlags, func() { c.send(t, tcpSegment{flags: tcpSYN, out: true}) })
		l.expect(t, "SYN, ACK", notForFlags, func() { c.send(t, tcpSegment{flags: tcpSYN | tcpACK}) })
		for i := range eagerPackets {
			if asked := l.asked(t); len(asked) > 0 {
				t.Errorf("asked for %+v after %d packets", asked, i)
			}
			if i%2 == 0 {
				l.expect(t, "out", notLiberal, func() { c.out(t) })
			} else {
				l.expect(t, "back", notLiberal, func() { c.back(t) })
			}
		}
		asked := l.asked(t)
		want := FastpathFastAsk{Sport: be16(c.client.Port()), Dport: be16(c.server.Port())}
		want.Src.Word, want.Dst.Word = words(c.client.Addr()), words(c.server.Addr())
		if len(asked) != 1 || asked[0] != want {
			t.Errorf("asked for %+v, want %+v", asked, want)
		}
		before := time.Now()
		for range 20 * eagerPackets {
			c.out(t)
		}
		if asked, most := l.asked(t), 1+int(time.Since(before)/time.Second); len(asked) > most {
			t.Errorf("asked %d times more, %d at most", len(asked), most)
		}
		c.loosen(t)
		l.expect(t, "out, liberal", learntOne, func() { c.out(t) })
		l.expect(t, "back, liberal", learntOne, func() { c.back(t) })
		for range 3 {
			l.expect(t, "out, fast", forwardedOne, func() { c.out(t) })
			l.expect(t, "back, fast", forwardedOne, func() { c.back(t) })
		}
	}
}

func (l *learnLab) clearEager(t *testing.T) {
	t.Helper()
	for i := range l.fast.FastEager.MaxEntries() {
		put(t, l.fast.FastEager, i, FastpathFastEager{})
	}
}

// fast returns a connection whose segments XDP forwards.
func (l *learnLab) fastConnection(t *testing.T, ipv6 bool, sport uint16) *connection {
	t.Helper()
	c := l.connection(t, ipv6, sport)
	c.handshake(t)
	c.loosen(t)
	c.out(t)
	c.back(t)
	l.expect(t, "out", forwardedOne, func() { c.out(t) })
	l.expect(t, "back", forwardedOne, func() { c.back(t) })
	return c
}

// What begins or ends a connection has both directions take the stack, whichever MAC
// they come to.
func TestLearnVoids(t *testing.T) {
	l := newLearnLab(t)
	l.voids(t)
	l.raise(t)
	l.voids(t)
}

func (l *learnLab) voids(t *testing.T) {
	t.Helper()
	for i, end := range []struct {
		name  string
		flags uint8
		then  outcome // of what comes behind it
	}{
		{"FIN", tcpFIN | tcpACK, notEstablished},
		{"RST", tcpRST, notEstablished},
		{"RST, ACK", tcpRST | tcpACK, notEstablished},
		{"SYN", tcpSYN, learntOne}, // conntrack ignores it
	} {
		for j, ipv6 := range []bool{false, true} {
			for k, out := range []bool{true, false} {
				name := fmt.Sprintf("%s, %v, out %v", end.name, host(ipv6), out)
				l.clearEntries(t)
				c := l.fastConnection(t, ipv6, uint16(5000+1000*len(l.virtual)+100*i+10*j+k))
				if found := l.entries(t); len(found) != 2 {
					t.Errorf("%s: %d entries before, want 2", name, len(found))
				}
				if end.flags == tcpSYN && !out {
					continue // nothing that conntrack lets pass
				}
				c.loosen(t) // or conntrack wants an answer to a RST that is not where it saw the last acknowledgement
				l.expect(t, name, notForFlags, func() { c.send(t, tcpSegment{flags: end.flags, out: out}) })
				if found := l.entries(t); len(found) > 0 {
					t.Errorf("%s: entries left: %+v", name, found)
				}
				l.expect(t, name+", then", end.then, func() { c.send(t, tcpSegment{flags: tcpACK, out: !out}) })
			}
		}
	}
}

func (l *learnLab) clearEntries(t *testing.T) {
	t.Helper()
	for i := range uint32(fastBuckets) {
		put(t, l.fast.Fast4, i, FastpathFast4Bucket{})
		put(t, l.fast.Fast6, i, FastpathFast6Bucket{})
	}
}

// Conntrack remembers an acknowledgement that the flow has left far behind: a RST
// would be older than it. It is asked to forget it, and the flow waits on the stack.
func TestLearnFar(t *testing.T) {
	l := newLearnLab(t)
	for i, ipv6 := range []bool{false, true} {
		for j, out := range []bool{true, false} {
			name := fmt.Sprintf("%v, out %v", host(ipv6), out)
			c := l.fastConnection(t, ipv6, uint16(5000+10*i+j))
			// The other end acknowledges what has gone by.
			jump := tcpSegment{flags: tcpACK, out: out, jump: far}
			l.expect(t, name+", octets", forwardedOne, func() { c.send(t, jump) })
			answer := tcpSegment{flags: tcpACK, out: !out}
			l.expect(t, name+", acknowledged", notLiberal, func() { c.send(t, answer) })
			l.expect(t, name+", again", notLiberal, func() { c.send(t, answer) })
			l.clearEntries(t)
			l.expect(t, name+", its own direction", notLiberal, func() { c.send(t, tcpSegment{flags: tcpACK, out: out}) })
			c.loosen(t)
			l.expect(t, name+", forgotten", learntOne, func() { c.send(t, answer) })
			l.expect(t, name+", fast again", forwardedOne, func() { c.send(t, answer) })
			l.expect(t, name+", reset", notForFlags, func() { c.send(t, tcpSegment{flags: tcpRST | tcpACK, out: out}) })
		}
	}
}

// However often a flow is learnt anew, it is the acknowledgement that conntrack
// remembers which is left behind, not the one that taught.
func TestLearnFarFromConntrack(t *testing.T) {
	l := newLearnLab(t)
	for i, ipv6 := range []bool{false, true} {
		l.clearEntries(t)
		c := l.fastConnection(t, ipv6, uint16(5000+10*i))
		near := tcpSegment{flags: tcpACK, out: true, jump: far / 4 * 3}
		l.expect(t, "octets", forwardedOne, func() { c.send(t, near) })
		answers := l.entries(t)[1]
		answers.fate.Generation = 0
		answers.write(answers.fate)
		l.expect(t, "acknowledged", learntOne, func() { c.back(t) })
		l.expect(t, "and again", forwardedOne, func() { c.back(t) })
		l.expect(t, "more octets", forwardedOne, func() { c.send(t, near) })
		l.expect(t, "too far", notLiberal, func() { c.back(t) })
	}
}
