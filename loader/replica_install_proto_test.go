// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// rawSocket opens a raw socket of an IPv4 protocol.
func rawSocket(t *testing.T, ns netns.NsHandle, proto uint8, at string) (conn *net.IPConn) {
	t.Helper()
	err := inNamespace(ns, func() (err error) {
		conn, err = net.ListenIP(fmt.Sprintf("ip4:%d", proto), &net.IPAddr{IP: net.ParseIP(at)})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// passes sends a packet until the other end has it, and returns from where.
func passes(t *testing.T, from, to *net.IPConn, dst string, packet []byte) string {
	t.Helper()
	buffer := make([]byte, 1500)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if _, err := from.WriteToIP(packet, &net.IPAddr{IP: net.ParseIP(dst)}); err != nil {
			t.Fatal(err)
		}
		_ = to.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		for {
			n, source, err := to.ReadFromIP(buffer)
			if err != nil {
				break
			}
			if bytes.Equal(buffer[:n], packet) {
				return source.String()
			}
		}
	}
	t.Fatalf("% x did not come to %s within %v", packet, dst, patience)
	return ""
}

// sctpData is a packet with one chunk, RFC 9260 section 3.
func sctpData(text string) []byte {
	b := []byte{0x13, 0x88, 0x13, 0x88, 1, 2, 3, 4, 0, 0, 0, 0, 0, 3, 0, byte(4 + len(text))}
	b = append(b, text...)
	b = append(b, make([]byte, -len(b)&3)...)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// TestOtherProtocolsInstalled: flows without ports, and SCTP, go on with the VIP
// for more than one packet.
func TestOtherProtocolsInstalled(t *testing.T) {
	l := newReplicaLab(t, masqueradeWAN)
	const host, server = "192.168.1.10", "198.51.100.9"
	for name, kind := range map[string]struct {
		proto uint8
		port  string
		make  func(string) []byte
	}{
		"GRE":  {unix.IPPROTO_GRE, "0", func(s string) []byte { return []byte("\x00\x00\x08\x00" + s) }},
		"ESP":  {unix.IPPROTO_ESP, "0", func(s string) []byte { return []byte("\x00\x00\x10\x01\x00\x00\x00\x01" + s) }},
		"253":  {253, "0", func(s string) []byte { return []byte(s) }},
		"SCTP": {unix.IPPROTO_SCTP, "5000", sctpData},
	} {
		flow := udpFlow(host+":"+kind.port, vip+":"+kind.port, server+":"+kind.port)
		flow.Proto, flow.Bits = kind.proto, policy.FlowSeenReply
		if kind.proto == unix.IPPROTO_SCTP {
			flow.Extra = &policy.FlowExtra{SCTPState: 4, SCTPTags: [2]uint32{0x01020304, 0x01020304}}
		}
		l.mustBecome(t, Installation{Flow: &flow}, Installed)
		inside, outside := rawSocket(t, l.lan, kind.proto, host), rawSocket(t, l.wan, kind.proto, server)
		for _, text := range []string{"one.", "two.", "three..."} {
			if got := passes(t, inside, outside, server, kind.make(text)); got != vip {
				t.Errorf("%s, %s comes from %s", name, text, got)
			}
			passes(t, outside, inside, vip, kind.make("back "+text))
		}
	}
	l.mustHaveMappings(t, 4)
}

// TestZoneAndMark: a flow in a conntrack zone is installed there, with its mark.
func TestZoneAndMark(t *testing.T) {
	l := newReplicaLab(t, masqueradeWAN+`
		table inet zones { chain pre { type filter hook prerouting priority raw;
			udp dport 7000 ct zone set 5; udp sport 7000 ct zone set 5; }; }`)
	flow := udpFlow("192.168.1.10:4000", vip+":4999", server7)
	flow.Zone, flow.Mark = 5, 0x77
	l.mustBecome(t, Installation{Flow: &flow}, Installed)
	client, server := socket(t, l.lan, "192.168.1.10:4000"), socket(t, l.wan, server7)
	if got := exchange(t, client, server, server7); got.String() != vip+":4999" {
		t.Errorf("it comes from %v", got)
	}
	if entry, err := l.replica.conn.Get(origTuple(&flow.FlowKey)); err != nil || entry.Mark != 0x77 || entry.Status&conntrack.SeenReply == 0 {
		t.Errorf("entry %+v, %v", entry, err)
	}
	if !l.removeOne(t, Removal{Key: flow.FlowKey, To: flow.To, Pin: flow.Pin}) {
		t.Error("it could not be removed")
	}
	l.mustHaveMappings(t, 0)
}

const portForward = masqueradeWAN + `
table inet forward {
	ct helper ftp-standard { type "ftp" protocol tcp; }
	chain help { type filter hook prerouting priority mangle; tcp dport 21 ct helper set "ftp-standard"; }
	chain pre { type nat hook prerouting priority dstnat; iifname "wan0" tcp dport 21 dnat ip to 192.168.1.100:2121; }
}`

// TestFTPOutlivesItsRouter: an FTP session through a port forward on the VIP goes
// on through the second router, which has neither the forward nor the helper in
// its rules: the announced data connection, and the next one.
func TestFTPOutlivesItsRouter(t *testing.T) {
	p := newPair(t, portForward)
	p.inside = append(p.inside, "192.168.1.100/24") // longer in digits than the VIP
	err := inNamespace(p.lan, func() error {
		// No loss probes: the helper lets the second copy of an announcement pass as it is.
		return errors.Join(plug("peer", "192.168.1.100/24"), sysctls("net/ipv4/tcp_early_retrans=0"))
	})
	if err != nil {
		t.Fatal(err)
	}
	client, server := connect(t, p.wan, p.lan, "198.51.100.9:45000", vip+":21", "192.168.1.100:2121")
	session := ftpSession{client: bufio.NewReader(client), server: bufio.NewReader(server), toServer: client, toClient: server}
	session.greet(t)
	session.passive(t, "192,168,1,100,137,56")
	flows := p.told(t)
	if len(flows) != 1 || flows[0].Extra == nil || flows[0].Extra.Helper != "ftp" || flows[0].Extra.Adjust[1] == (policy.SeqAdjust{}) {
		t.Fatalf("told %+v", flows)
	}
	mustInstall(t, p.peer, installations(flows), Installed)
	var expected []policy.Expectation
	err = p.replica.Expectations(context.Background(), func(e *policy.Expectation) error {
		expected = append(expected, *e)
		return nil
	})
	if err != nil || len(expected) != 1 {
		t.Fatalf("expected %+v, %v", expected, err)
	}
	for range 2 { // twice is no harm
		if err := p.peer.InstallExpectation(&expected[0]); err != nil {
			t.Fatal(err)
		}
	}
	p.failOver(t)
	data, accepted := connect(t, p.wan, p.lan, "198.51.100.9:45001", vip+":35128", "192.168.1.100:35128")
	both(t, data, accepted)
	session.passive(t, "192,168,1,100,137,57")
	data, accepted = connect(t, p.wan, p.lan, "198.51.100.9:45002", vip+":35129", "192.168.1.100:35129")
	both(t, data, accepted)
	child, err := p.conn.Get(conntrack.Tuple{
		Src: netip.MustParseAddr("198.51.100.9"), Dst: netip.MustParseAddr(vip), Proto: unix.IPPROTO_TCP, SrcPort: 45002, DstPort: 35129,
	})
	if err != nil || child.Status&conntrack.Expected == 0 {
		t.Errorf("data connection %+v, %v", child, err)
	}
}

// ftpSession is a control connection, RFC 959.
type ftpSession struct {
	client, server     *bufio.Reader
	toServer, toClient net.Conn
}

// greet has the server say a line, which the helper must see before others.
func (s *ftpSession) greet(t *testing.T) {
	t.Helper()
	if _, err := s.toClient.Write([]byte("220 ready\r\n")); err != nil {
		t.Fatal(err)
	}
	if line, err := s.client.ReadString('\n'); err != nil {
		t.Fatalf("the client reads %q, %v", line, err)
	}
}

// passive has the server announce an address; the client must read the VIP's.
func (s *ftpSession) passive(t *testing.T, announced string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	_, _ = s.toServer.SetDeadline(deadline), s.toClient.SetDeadline(deadline)
	if _, err := s.toServer.Write([]byte("PASV\r\n")); err != nil {
		t.Fatal(err)
	}
	if line, err := s.server.ReadString('\n'); err != nil || line != "PASV\r\n" {
		t.Fatalf("the server reads %q, %v", line, err)
	}
	if _, err := fmt.Fprintf(s.toClient, "227 Entering Passive Mode (%s).\r\n", announced); err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(announced, "192,168,1,100", "198,51,100,2", 1)
	if line, err := s.client.ReadString('\n'); err != nil || line != "227 Entering Passive Mode ("+want+").\r\n" {
		t.Fatalf("the client reads %q, %v, want %s", line, err, want)
	}
}
