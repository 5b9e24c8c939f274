// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
)

// sctpStates is the number of states in enum sctp_conntrack.
const sctpStates = 9

// timeouts are what conntrack gives flows when a packet comes, by protocol and
// state: the sysctls net.netfilter.nf_conntrack_*_timeout*.
type timeouts struct {
	tcp                                    [conntrack.TCPSynSent2 + 1]time.Duration
	sctp                                   [sctpStates]time.Duration
	udp, udpStream, icmp, icmpv6, gre, any time.Duration
}

// of is the timeout of a flow in a state. A TCP connection that is established
// without an answer was only begun (see tcpState).
func (t *timeouts) of(proto uint8, status conntrack.Status, tcp *conntrack.TCP, sctp *conntrack.SCTP) time.Duration {
	answered := status&conntrack.SeenReply != 0
	switch proto {
	case unix.IPPROTO_TCP:
		switch {
		case tcp == nil || int(tcp.State) >= len(t.tcp):
			return t.any
		case tcp.State == conntrack.TCPEstablished && !answered:
			return t.tcp[conntrack.TCPSynSent]
		}
		return t.tcp[tcp.State]
	case unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE:
		if answered && status&conntrack.Assured != 0 {
			return t.udpStream
		}
		return t.udp
	case unix.IPPROTO_ICMP:
		return t.icmp
	case unix.IPPROTO_ICMPV6:
		return t.icmpv6
	case unix.IPPROTO_GRE:
		return t.gre
	case unix.IPPROTO_SCTP:
		if sctp != nil && int(sctp.State) < len(t.sctp) {
			return t.sctp[sctp.State]
		}
	}
	return t.any
}

// readTimeouts reads them of the calling thread's network namespace. What this
// kernel does not have is taken from the kernel's defaults.
func readTimeouts() *timeouts {
	t := &timeouts{
		udp: sysctlTimeout("udp_timeout", 30), udpStream: sysctlTimeout("udp_timeout_stream", 120),
		icmp: sysctlTimeout("icmp_timeout", 30), icmpv6: sysctlTimeout("icmpv6_timeout", 30),
		gre: sysctlTimeout("gre_timeout_stream", 180), any: sysctlTimeout("generic_timeout", 600),
	}
	for state, of := range [...]struct {
		name    string
		seconds int
	}{
		{"syn_sent", 120}, {"syn_sent", 120}, {"syn_recv", 60}, {"established", 432000}, {"fin_wait", 120},
		{"close_wait", 60}, {"last_ack", 30}, {"time_wait", 120}, {"close", 10}, {"syn_sent", 120},
	} {
		t.tcp[state] = sysctlTimeout("tcp_timeout_"+of.name, of.seconds)
	}
	for state, of := range [...]struct {
		name    string
		seconds int
	}{
		{"closed", 10}, {"closed", 10}, {"cookie_wait", 3}, {"cookie_echoed", 3}, {"established", 210},
		{"shutdown_sent", 3}, {"shutdown_recd", 3}, {"shutdown_ack_sent", 3}, {"heartbeat_sent", 30},
	} {
		t.sctp[state] = sysctlTimeout("sctp_timeout_"+of.name, of.seconds)
	}
	return t
}

func sysctlTimeout(name string, otherwise int) time.Duration {
	text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_" + name)
	seconds, parsed := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || parsed != nil || seconds <= 0 {
		seconds = otherwise
	}
	return time.Duration(seconds) * time.Second
}
