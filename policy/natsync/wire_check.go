// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"vippin/policy"
)

// IP protocol numbers that are treated apart, of IANA's registry.
const (
	ipICMP    = 1
	ipTCP     = 6
	ipUDP     = 17
	ipGRE     = 47
	ipDCCP    = 33
	ipICMPv6  = 58
	ipSCTP    = 132
	ipUDPLite = 136
)

const (
	maxScale     = 14 // RFC 7323 section 2.3
	maxTCPState  = 9  // TCP_CONNTRACK_SYN_SENT2
	maxSCTPState = 9  // SCTP_CONNTRACK_HEARTBEAT_ACKED
)

// The errors have no detail, so that checking costs nothing; who reports one says
// which flow it was.
var (
	errNoProto     = errors.New("proto is 0")
	errNoAddr      = errors.New("src or dst is the unspecified address")
	errFamilies    = errors.New("src, dst, to and from are not of one family")
	errPorts       = errors.New("proto has no ports, but src_port, dst_port, to_port or from_port is set")
	errEchoPorts   = errors.New("icmp echo has an identifier in dst_port or from_port")
	errTCPOfOther  = errors.New("tcp is set, but proto is another")
	errTCPState    = errors.New("tcp has a state that does not exist")
	errTCPScale    = errors.New("tcp has a window scale over 14")
	errSCTPOfOther = errors.New("sctp_state or a tag is set, but proto is another")
	errSCTPState   = errors.New("sctp_state does not exist")
	errHelper      = errors.New("helper is no name")
)

// checkFlow tells why a flow makes no sense, or nil.
func checkFlow(f *policy.Flow) error {
	if err := checkKey(&f.FlowKey); err != nil {
		return err
	}
	if err := checkOthers(&f.FlowKey, &f.To, &f.From); err != nil {
		return err
	}
	if f.Proto != ipTCP && (f.TCPState != 0 || f.TCPScale != [2]uint8{}) {
		return errTCPOfOther
	}
	if f.TCPState > maxTCPState {
		return errTCPState
	}
	if f.TCPScale[0] > maxScale || f.TCPScale[1] > maxScale {
		return errTCPScale
	}
	if f.Extra == nil {
		return nil
	}
	return checkExtra(f.Proto, f.Extra)
}

func checkExtra(proto uint8, x *policy.FlowExtra) error {
	if proto != ipSCTP && (x.SCTPState != 0 || x.SCTPTags != [2]uint32{}) {
		return errSCTPOfOther
	}
	if x.SCTPState > maxSCTPState {
		return errSCTPState
	}
	if checkName(x.Helper) != nil {
		return errHelper
	}
	if x.Master == (policy.FlowKey{}) {
		return nil
	}
	if err := checkKey(&x.Master); err != nil {
		return fmt.Errorf("master: %w", err)
	}
	return nil
}

// checkKey tells why a key makes no sense, or nil.
func checkKey(k *policy.FlowKey) error {
	if k.Proto == 0 {
		return errNoProto
	}
	four := is4(&k.Src.Addr)
	if is4(&k.Dst.Addr) != four {
		return errFamilies
	}
	if unspecified(&k.Src.Addr) || unspecified(&k.Dst.Addr) {
		return errNoAddr
	}
	switch portsOf(k.Proto, four) {
	case portsNone:
		if k.Src.Port != 0 || k.Dst.Port != 0 {
			return errPorts
		}
	case portsEcho:
		if k.Dst.Port != 0 {
			return errEchoPorts
		}
	}
	return nil
}

// checkOthers does the same for the ends on the wire of a valid key.
func checkOthers(k *policy.FlowKey, to, from *policy.End) error {
	four := is4(&k.Src.Addr)
	if is4(&to.Addr) != four || is4(&from.Addr) != four {
		return errFamilies
	}
	switch portsOf(k.Proto, four) {
	case portsNone:
		if to.Port != 0 || from.Port != 0 {
			return errPorts
		}
	case portsEcho:
		if from.Port != 0 {
			return errEchoPorts
		}
	}
	return nil
}

// ports is what the ports of a protocol's ends are.
type ports uint8

const (
	portsNone ports = iota
	portsBoth
	portsEcho // an identifier at one end
)

func portsOf(proto uint8, four bool) ports {
	switch proto {
	case ipTCP, ipUDP, ipUDPLite, ipSCTP, ipDCCP:
		return portsBoth
	case ipICMP:
		if four {
			return portsEcho
		}
	case ipICMPv6:
		if !four {
			return portsEcho
		}
	}
	return portsNone
}

func unspecified(addr *[16]byte) bool {
	return *addr == [16]byte{} || *addr == [16]byte{10: 0xff, 11: 0xff}
}

// checkExpectation tells why an expectation makes no sense, or nil.
func checkExpectation(e *policy.Expectation) error {
	if err := checkKey(&e.Master); err != nil {
		return fmt.Errorf("master: %w", err)
	}
	if e.Proto == 0 {
		return errNoProto
	}
	four := is4(&e.Dst.Addr)
	if unspecified(&e.Dst.Addr) || !e.AnySrc && unspecified(&e.Src.Addr) {
		return errNoAddr
	}
	if !e.AnySrc && is4(&e.Src.Addr) != four || e.NAT != (policy.End{}) && is4(&e.NAT.Addr) != four {
		return errFamilies
	}
	if e.AnySrc && e.Src != (policy.End{Port: e.Src.Port}) {
		return errors.New("src is set, but any is expected")
	}
	if err := checkName(e.Helper); err != nil {
		return fmt.Errorf("helper: %w", err)
	}
	if err := checkName(e.Function); err != nil {
		return fmt.Errorf("function: %w", err)
	}
	return nil
}

// checkName refuses what is too long or would disturb a terminal.
func checkName(name string) error {
	if len(name) > MaxName {
		return fmt.Errorf("%d octets, over %d", len(name), MaxName)
	}
	if !utf8.ValidString(name) {
		return errors.New("not UTF-8")
	}
	for _, c := range name {
		if !unicode.IsPrint(c) {
			return fmt.Errorf("%q is not printable", c)
		}
	}
	return nil
}

// cleanName makes a name of any text.
func cleanName(text string) string {
	var clean strings.Builder
	for _, c := range text {
		if clean.Len()+utf8.RuneLen(c) > MaxName {
			break
		}
		if unicode.IsPrint(c) {
			clean.WriteRune(c)
		}
	}
	return clean.String()
}
