// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"vippin/test/lab"
)

// mapping is a flow of an inside host and how the wire knows it; conntrackd does
// not print the latter of what is in its external cache.
type mapping struct{ client, remote, public netip.AddrPort }

// compare counts the flows that the inside host made and the peer does not
// have, or has with another public end.
func (b *bed) compare(ctx context.Context, result *Result) error {
	born, err := b.born(ctx)
	if err != nil {
		return err
	}
	known, err := b.known(ctx)
	if err != nil {
		return err
	}
	if b.arm.external() {
		born = withoutPublic(born)
	}
	result.Replicated, result.Missing = len(born), missing(born, known)
	if lost := result.Flows - len(born); lost > 0 {
		b.notes = append(b.notes, fmt.Sprintf("%d flows have no mapping at the router of birth%s", lost, b.unpinned()))
	}
	return nil
}

// unpinned says what vippin on ra left unpinned.
func (b *bed) unpinned() string {
	if !b.arm.vippin {
		return ""
	}
	out, _, _ := b.Vippin(b.RA, "pin", "ls", "-j")
	var pins []struct {
		By map[string]uint64 `json:"unpinned_by"`
	}
	if json.Unmarshal([]byte(out), &pins) != nil || len(pins) != 1 {
		return ""
	}
	return fmt.Sprintf("; unpinned packets: %v", pins[0].By)
}

func withoutPublic(all map[mapping]bool) map[mapping]bool {
	stripped := make(map[mapping]bool, len(all))
	for m := range all {
		m.public = netip.AddrPort{}
		stripped[m] = true
	}
	return stripped
}

func missing(born, known map[mapping]bool) (n int) {
	for m := range born {
		n += count(!known[m])
	}
	return n
}

func count(yes bool) int {
	if yes {
		return 1
	}
	return 0
}

// born are the mappings that ra has made.
func (b *bed) born(ctx context.Context) (map[mapping]bool, error) {
	if !b.arm.vippin { // translated to the VIP by conntrack itself
		return b.listed(ctx, b.RA, "conntrack", "-L", "-p", "udp", "-f", b.c.Family)
	}
	out, complaint, exit := b.Vippin(b.RA, "flows", "-j")
	if exit != 0 {
		return nil, fmt.Errorf("vippin flows on ra: exit %d: %s", exit, strings.TrimSpace(complaint))
	}
	return parseFlows(out, b.client())
}

// known are the mappings that rb would use: in the kernel's table, or in
// conntrackd's external cache, from where they can be committed.
func (b *bed) known(ctx context.Context) (map[mapping]bool, error) {
	if b.arm.external() {
		return b.cached(ctx)
	}
	return b.listed(ctx, b.RB, "conntrack", "-L", "-p", "udp", "-f", b.c.Family)
}

// cached reads conntrackd's external cache. On a busy machine what conntrackd
// prints ends too early at times (seen: 40,000 of 100,000): it gets three tries.
func (b *bed) cached(ctx context.Context) (found map[mapping]bool, err error) {
	size, err := b.externalCache(ctx, b.RB)
	for range 3 {
		if err != nil || len(found) >= min(size, b.c.Flows) {
			break
		}
		var out string
		out, err = b.RB.Conntrackd(ctx, "-e")
		found = parseEntries(out, b.client())
	}
	return found, err
}

func (b *bed) listed(ctx context.Context, r *lab.Router, command string, args ...string) (map[mapping]bool, error) {
	out, err := r.Run(ctx, command, args...)
	return parseEntries(out, b.client()), err
}

func (b *bed) client() netip.Addr { return b.of(lab.HostEnds(probeHost)) }

// parseEntries reads what conntrack -L and conntrackd -e print of one client's
// UDP flows.
func parseEntries(text string, client netip.Addr) map[mapping]bool {
	found := make(map[mapping]bool)
	for line := range strings.Lines(text) {
		if !strings.Contains(line, "udp ") {
			continue
		}
		var addrs []netip.Addr // source and destination of both directions
		var ports []uint16
		for _, field := range strings.Fields(line) {
			name, value, _ := strings.Cut(field, "=")
			switch name {
			case "src", "dst":
				addr, _ := netip.ParseAddr(value)
				addrs = append(addrs, addr)
			case "sport", "dport":
				port, _ := strconv.ParseUint(value, 10, 16)
				ports = append(ports, uint16(port))
			}
		}
		if len(addrs) < 2 || len(addrs) != len(ports) || addrs[0] != client {
			continue
		}
		m := mapping{client: netip.AddrPortFrom(addrs[0], ports[0]), remote: netip.AddrPortFrom(addrs[1], ports[1])}
		if len(addrs) == 4 {
			m.public = netip.AddrPortFrom(addrs[3], ports[3])
		}
		found[m] = true
	}
	return found
}

// parseFlows reads "vippin flows -j": one client's UDP flows.
func parseFlows(text string, client netip.Addr) (map[mapping]bool, error) {
	found := make(map[mapping]bool)
	for line := range strings.Lines(text) {
		var f struct {
			Proto                  string
			Client, Remote, Public netip.AddrPort
		}
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			return nil, fmt.Errorf("read vippin flows: %w", err)
		}
		if f.Proto == "udp" && f.Client.Addr() == client {
			found[mapping{f.Client, f.Remote, f.Public}] = true
		}
	}
	return found, nil
}
