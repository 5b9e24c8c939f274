// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"
)

// One change to the quoted packet, and the error is none of the flow's.
func TestErrorNotOfTheFlow(t *testing.T) {
	d := newDataplane(t)
	other := func(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Next(), a.Port()) }
	port := func(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr(), a.Port()+1) }
	cases := []struct {
		name   string
		family int
		only   layers.IPProtocol // 255: any
		mutate func(q *frame)
	}{
		{"source address", 0, 255, func(q *frame) { q.src = other(q.src) }},
		{"destination address", 0, 255, func(q *frame) { q.dst = other(q.dst) }},
		{"source port", 0, layers.IPProtocolTCP, func(q *frame) { q.src = port(q.src) }},
		{"destination port", 0, layers.IPProtocolTCP, func(q *frame) { q.dst = port(q.dst) }},
		{"source port", 0, layers.IPProtocolSCTP, func(q *frame) { q.src = port(q.src) }},
		{"echo identifier", 0, icmp, func(q *frame) { q.src, q.dst = port(q.src), port(q.dst) }},
		{"udp instead of tcp", 0, layers.IPProtocolTCP, func(q *frame) { q.proto = layers.IPProtocolUDP }},
		{"esp instead of gre", 0, layers.IPProtocolGRE, func(q *frame) { q.proto = layers.IPProtocolESP }},
		{"wrong direction", 0, 255, func(q *frame) { q.src, q.dst, q.reply = q.dst, q.src, !q.reply }},
		{"echo of the other direction", 0, icmp, func(q *frame) { q.reply = !q.reply }},
		{"echo of the other direction, identifier where it was", 0, icmp, func(q *frame) {
			q.reply = !q.reply
			id := max(q.src.Port(), q.dst.Port())
			q.src, q.dst = netip.AddrPortFrom(q.src.Addr(), id), netip.AddrPortFrom(q.dst.Addr(), id)
		}},
		{"later fragment", 4, 255, func(q *frame) { q.fragment = 0x00b9 }},
		{"later fragment with more behind it", 4, 255, func(q *frame) { q.fragment = 0x2001 }},
		{"later fragment", 6, 255, func(q *frame) { q.ext = []extension{laterFragment} }},
		{"nine extension headers", 6, 255, func(q *frame) {
			for range 9 {
				q.ext = append(q.ext, destinationOpt)
			}
		}},
	}
	eachErrorFlow(t, func(t *testing.T, direction string, fl flow) {
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		for _, c := range cases {
			if !fl.fits(c.family, c.only) {
				continue
			}
			t.Run(c.name, func(t *testing.T) {
				in, _ := fl.errorFrames(t, direction, fl.errorKind(), quote{shape: c.mutate})
				// An error that arrives must have gone to who sent the quoted packet.
				q, _ := fl.quoted(direction)
				if c.mutate(&q); direction == ingress {
					in.dst = q.src
				}
				b := in.bytes(t)
				d.expectBoth(t, direction, b, b, forwarded, counts{})
			})
		}
	})
}

// With an identifier of 0 the direction of the quoted echo alone tells whose it is.
func TestErrorEchoIdentifierZero(t *testing.T) {
	d := newDataplane(t)
	for _, direction := range []string{egress, ingress} {
		for _, ipv6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/ipv6 %v", direction, ipv6), func(t *testing.T) {
				fl := someFlow(ipv6, icmp, false)
				fl.local = netip.AddrPortFrom(fl.local.Addr(), 0)
				fl.public = netip.AddrPortFrom(fl.public.Addr(), 0)
				d.unmapFlows(t)
				d.mapFlow(t, fl)
				in, want := fl.someError(t, direction)
				d.expectBoth(t, direction, in.bytes(t), want.bytes(t), forwarded, rewritten(direction))
				in, _ = fl.errorFrames(t, direction, fl.errorKind(), quote{shape: func(q *frame) { q.reply = !q.reply }})
				b := in.bytes(t)
				d.expectBoth(t, direction, b, b, forwarded, counts{})
			})
		}
	}
}

// An error about an error is not to exist (RFC 1122 3.2.2), and is left alone.
func TestErrorQuotesError(t *testing.T) {
	d := newDataplane(t)
	eachErrorFlow(t, func(t *testing.T, direction string, fl flow) {
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		inner, _ := fl.someError(t, map[string]string{egress: ingress, ingress: egress}[direction])
		in, _ := fl.someError(t, direction)
		in.err.packet, _ = inner.ip(t)
		b := in.bytes(t)
		d.expectBoth(t, direction, b, b, forwarded, counts{})
	})
}

// Of the other types of message none is taken for an error. (Echo is a matter
// of its identifier, which here is another one.)
func TestErrorTypes(t *testing.T) {
	d := newDataplane(t)
	eachErrorFlow(t, func(t *testing.T, direction string, fl flow) {
		if fl.proto != layers.IPProtocolUDP || fl.local.Port() == fl.public.Port() {
			return
		}
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		ipv6 := fl.local.Addr().Is6()
		for kind := range 256 {
			isError := kind == 3 || kind == 4 || kind == 5 || kind == 11 || kind == 12
			if ipv6 {
				isError = kind < 128 // RFC 4443 2.1: known or not
			}
			in, want := fl.errorFrames(t, direction, quotation{kind: uint8(kind)}, quotes[0])
			if !isError {
				want = in
			}
			d.forget(t)
			got := run(t, d.program(direction), in.bytes(t), forwarded, checksumComplete)
			sameBytes(t, fmt.Sprintf("type %d", kind), got.frame, want.bytes(t))
			counted := counts{}
			if isError {
				counted = rewritten(direction)
			}
			sameCounts(t, fmt.Sprintf("type %d", kind), d.pinCounts(t, pinNumber), counted)
		}
	})
}

// ICMP belongs to IPv4 and ICMPv6 to IPv6.
func TestErrorOfTheOtherFamily(t *testing.T) {
	d := newDataplane(t)
	eachErrorFlow(t, func(t *testing.T, direction string, fl flow) {
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		in, _ := fl.someError(t, direction)
		b := in.bytes(t)
		if fl.local.Addr().Is6() {
			b[etherHeader+6] = byte(layers.IPProtocolICMPv4)
		} else {
			b[etherHeader+9] = byte(layers.IPProtocolICMPv6)
		}
		d.expectBoth(t, direction, b, b, skBuff{}, counts{})
		got := run(t, d.program(direction), b, forwarded, checksumComplete)
		sameBytes(t, "forwarded", got.frame, b)
		sameCounts(t, "pin 1", d.pinCounts(t, pinNumber), nil)
	})
}

// What the router itself sends without the mapped flow's conntrack entry is an
// answer to something that conntrack took for no flow.
func TestErrorOfTheRouterItself(t *testing.T) {
	d := newDataplane(t)
	eachErrorFlow(t, func(t *testing.T, direction string, fl flow) {
		if direction != egress {
			return
		}
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		in, want := fl.someError(t, egress)
		d.expectBoth(t, egress, in.bytes(t), want.bytes(t), forwarded, rewritten(egress))
		b := in.bytes(t)
		d.expectBoth(t, egress, b, b, skBuff{}, counts{})
	})
}

// Where conntrack itself knows the flow by its public end, it also translates
// the errors.
func TestErrorNative(t *testing.T) {
	d := newDataplane(t)
	eachErrorFlow(t, func(t *testing.T, direction string, fl flow) {
		fl.local = fl.public
		fl.flags = DataplaneMappingFlagsMAPPING_NATIVE
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		in, _ := fl.someError(t, direction)
		b := in.bytes(t)
		d.expectBoth(t, direction, b, b, forwarded, rewritten(direction))
	})
}

// The mapping decides, not the role; that the VIP is another's is counted.
func TestErrorWhileBackup(t *testing.T) {
	d := newDataplane(t)
	eachErrorFlow(t, func(t *testing.T, direction string, fl flow) {
		d.reset(t)
		d.setRole(t, roleBackup)
		d.mapFlow(t, fl)
		in, want := fl.someError(t, direction)
		counted := rewritten(direction)
		if direction == egress {
			counted[DataplanePinCounterPIN_VIP_WHILE_BACKUP] = 1
		}
		d.expectBoth(t, direction, in.bytes(t), want.bytes(t), forwarded, counted)
	})
}

// Errors about unmapped flows concern nobody, and are nobody's flow themselves.
func TestErrorOfNoFlow(t *testing.T) {
	d := newDataplane(t)
	eachErrorFlow(t, func(t *testing.T, direction string, fl flow) {
		d.reset(t)
		in, _ := fl.someError(t, direction)
		b := in.bytes(t)
		d.expectBoth(t, direction, b, b, forwarded, counts{})
		// As if an ICMP without ports were a flow.
		fl.proto, fl.remote = icmp, in.dst
		fl.local, fl.public = netip.AddrPortFrom(fl.local.Addr(), 0), netip.AddrPortFrom(fl.public.Addr(), 0)
		if direction == ingress {
			fl.remote = in.src
		}
		fl.remote = netip.AddrPortFrom(fl.remote.Addr(), 0)
		d.mapFlow(t, fl)
		d.expectBoth(t, direction, b, b, forwarded, counts{})
	})
}

// Any octet of an error may be wrong. Whatever comes of it: the frame keeps its
// length, skb->csum stays right, only addresses, ports and checksums change, and
// that is counted once.
func TestErrorMalformed(t *testing.T) {
	d := newDataplane(t)
	eachErrorFlow(t, func(t *testing.T, direction string, fl flow) {
		if fl.local.Port() > 0 && fl.local.Port() == fl.public.Port() && fl.proto != layers.IPProtocolSCTP {
			return // all that changes here changes with another port, too
		}
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		for _, q := range quotes {
			if !fl.fits(q.family, q.only) || len(q.behind) > 0 || q.octets != nil && q.family == 0 ||
				q.name == "udp without checksum" { // which gets one
				continue
			}
			t.Run(q.name, func(t *testing.T) {
				in, want := fl.errorFrames(t, direction, fl.errorKind(), q)
				d.eachOctetWrong(t, direction, in.bytes(t), want.bytes(t))
			})
		}
	})
}

// eachOctetWrong runs a good frame with one octet after the other changed.
func (d *dataplane) eachOctetWrong(t *testing.T, direction string, good, rewrittenGood []byte) {
	t.Helper()
	d.forget(t)
	changed := uint64(0)
	for i := etherHeader; i < len(good); i++ {
		for _, bits := range []byte{0x01, 0xff} {
			b := bytes.Clone(good)
			b[i] ^= bits
			if d.malformed(t, direction, b, good, rewrittenGood) {
				changed++
			}
			if t.Failed() {
				t.Fatalf("octet %d ^ %#x", i, bits)
			}
		}
	}
	counted := uint64(0)
	got := d.pinCounts(t, pinNumber)
	if direction == egress {
		delete(got, DataplanePinCounterPIN_FOREIGN) // the wrong octet made the VIP of our address
	}
	for c, n := range got {
		if rewritten(direction)[c] == 0 && (direction == egress || early[c] == 0) {
			t.Errorf("counter %v: %d", c, n)
		}
		counted += n
	}
	if counted != changed {
		t.Errorf("%d frames changed, counted %v", changed, got)
	}
}

// malformed runs a frame that differs from a good one in an octet, and tells
// whether it was rewritten. What a checksum becomes is not foreseen, only where
// it stands.
func (d *dataplane) malformed(t *testing.T, direction string, b, good, rewrittenGood []byte) (changed bool) {
	t.Helper()
	res, err := tryRun(d.program(direction), b, forwarded, checksumComplete)
	if errors.Is(err, unix.EINVAL) { // an older kernel
		res, err = tryRun(d.program(direction), b, forwarded, checksumNone)
	}
	if err != nil {
		t.Fatal(err)
	}
	if res.action != actUnspec || len(res.frame) != len(b) {
		t.Fatalf("action %d, %d octets of %d", int32(res.action), len(res.frame), len(b))
	}
	for i := range b {
		if res.frame[i] == b[i] {
			continue
		}
		changed = true
		// Of a checksum either octet may change.
		pair := i &^ 1
		if good[pair] == rewrittenGood[pair] && good[pair+1] == rewrittenGood[pair+1] {
			t.Errorf("octet %d changed from %#x to %#x", i, b[i], res.frame[i])
		}
	}
	return changed
}
