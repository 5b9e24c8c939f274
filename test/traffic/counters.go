// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Counters reads /proc/net/snmp, netstat and snmp6 of a namespace, with names such
// as "UdpInCsumErrors", "TcpRetransSegs", "TcpExtTCPSACKReorder" and
// "Udp6InCsumErrors". TCP's are of both families.
func Counters(in Enter) (map[string]uint64, error) {
	var v4, more, v6 []byte
	err := in(func() (err error) {
		// Not /proc/net: that is the main thread's namespace.
		if v4, err = os.ReadFile("/proc/thread-self/net/snmp"); err != nil {
			return fmt.Errorf("read the IPv4 counters: %w", err)
		}
		if more, err = os.ReadFile("/proc/thread-self/net/netstat"); err != nil {
			return fmt.Errorf("read the further counters of TCP: %w", err)
		}
		if v6, err = os.ReadFile("/proc/thread-self/net/snmp6"); err != nil {
			return fmt.Errorf("read the IPv6 counters: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	counts := make(map[string]uint64)
	lines := strings.Split(strings.TrimSpace(string(v4)+string(more)), "\n")
	for i := 0; i+1 < len(lines); i += 2 { // a line of names, a line of values
		names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
		if len(names) != len(values) || names[0] != values[0] {
			return nil, fmt.Errorf("read the IPv4 counters: %q does not match %q", lines[i], lines[i+1])
		}
		for j := 1; j < len(names); j++ {
			if n, err := strconv.ParseUint(values[j], 10, 64); err == nil { // Tcp MaxConn is -1
				counts[strings.TrimSuffix(names[0], ":")+names[j]] = n
			}
		}
	}
	for line := range strings.Lines(string(v6)) {
		if fields := strings.Fields(line); len(fields) == 2 {
			if n, err := strconv.ParseUint(fields[1], 10, 64); err == nil {
				counts[fields[0]] = n
			}
		}
	}
	return counts, nil
}

// ChecksumErrors adds up every InCsumErrors counter of a namespace. Packets
// that never left this machine's memory with offloads on carry no checksum to
// be wrong: switch the senders' tx offload off where it matters.
func ChecksumErrors(in Enter) (uint64, error) {
	counts, err := Counters(in)
	if err != nil {
		return 0, err
	}
	var sum uint64
	for name, n := range counts {
		if strings.HasSuffix(name, "InCsumErrors") {
			sum += n
		}
	}
	return sum, nil
}
