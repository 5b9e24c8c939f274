// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"errors"
	"net"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// encrypt has what the server sends to the host come by a tunnel to the router, which
// takes nothing else for it.
func (l *learnLab) encrypt(t *testing.T) {
	t.Helper()
	server, router, host := net.IP(server4.AsSlice()), net.IP(unique4.AsSlice()), net.IP(host4.AsSlice())
	state := &netlink.XfrmState{
		Src: server, Dst: router, Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TUNNEL, Spi: 0x100, Reqid: 1,
		Auth:  &netlink.XfrmStateAlgo{Name: "hmac(sha256)", Key: bytes.Repeat([]byte{1}, 32)},
		Crypt: &netlink.XfrmStateAlgo{Name: "cbc(aes)", Key: bytes.Repeat([]byte{2}, 16)},
	}
	policy := func(dir netlink.Dir) *netlink.XfrmPolicy {
		return &netlink.XfrmPolicy{
			Src: &net.IPNet{IP: server, Mask: net.CIDRMask(32, 32)}, Dst: &net.IPNet{IP: host, Mask: net.CIDRMask(32, 32)}, Dir: dir,
			Tmpls: []netlink.XfrmPolicyTmpl{{Src: server, Dst: router, Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TUNNEL, Reqid: 1}},
		}
	}
	err := netlink.XfrmStateAdd(state)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPROTOTYPE) {
		t.Skipf("this kernel has no IPsec (esp4): %v", err)
	}
	mustDo(t, err, netlink.XfrmPolicyAdd(policy(netlink.XFRM_DIR_FWD)), inside(l.wan, func() error {
		return errors.Join(netlink.XfrmStateAdd(state), netlink.XfrmPolicyAdd(policy(netlink.XFRM_DIR_OUT)))
	}))
}

// renew makes the notes of packets some time ago as young as the last one's.
func (l *learnLab) renew(t *testing.T) {
	t.Helper()
	notes, last := make(map[uint32]FastpathFastNote), uint32(0)
	for i := range l.fast.FastNotes.MaxEntries() {
		var note FastpathFastNote
		mustDo(t, l.fast.FastNotes.Lookup(i, &note))
		if note.Digest == 0 {
			continue
		}
		notes[i] = note
		if last == 0 || int32(note.Tick-last) > 0 {
			last = note.Tick
		}
	}
	for i, note := range notes {
		note.Tick = last
		put(t, l.fast.FastNotes, i, note)
	}
}

// What came out of a tunnel teaches nothing: XDP would forward the same where it comes
// without one, which the stack does not. The emulated machines have IPsec.
func TestLearnRefusesDecrypted(t *testing.T) {
	l := newLearnLab(t)
	nft(t, "flush ruleset")
	nft(t, noNAT)
	mustDo(t, inside(l.wan, func() error { return addRoute("198.18.1.0/24", unique4.String()) }))
	l.setState(t, func(s *FastpathFastState) { s.All = 1 })
	k := l.talk(t, false, 5555)
	k.out(t)
	l.expect(t, "in the clear", learntOne, func() { k.back(t) })
	l.encrypt(t)
	l.clearEntries(t)
	other := l.talk(t, true, 4444)
	other.out(t)
	l.renew(t)
	l.expect(t, "by the tunnel", refused(FastpathFastRefusalREFUSED_CHANGED), func() { k.back(t) })
}
