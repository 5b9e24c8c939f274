// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// icmpFamily is what differs between ICMP (RFC 792) and ICMPv6 (RFC 4443).
type icmpFamily struct {
	network, any   string
	protocol       int
	request, reply icmp.Type
}

var (
	icmp4        = icmpFamily{"ip4:icmp", "0.0.0.0", 1, ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply}
	icmp6        = icmpFamily{"ip6:ipv6-icmp", "::", 58, ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply}
	icmpFamilies = []icmpFamily{icmp4, icmp6}
)

// listen opens a raw socket, which needs root; datagram ICMP sockets could not
// choose their identifier.
func (f icmpFamily) listen() (*icmp.PacketConn, error) {
	conn, err := icmp.ListenPacket(f.network, f.any)
	if err != nil {
		return nil, fmt.Errorf("open a raw %s socket: %w", f.network, err)
	}
	return conn, nil
}

// echoIn reads one ICMP message as an echo of the wanted type.
func (f icmpFamily) echoIn(message []byte, wanted icmp.Type) *icmp.Echo {
	parsed, err := icmp.ParseMessage(f.protocol, message)
	if err != nil || parsed.Type != wanted {
		return nil
	}
	echo, _ := parsed.Body.(*icmp.Echo)
	return echo
}

// watchEchoes remembers the source of every echo request a Pinger sent.
func (s *Server) watchEchoes(f icmpFamily, conn *icmp.PacketConn) {
	buffer := make([]byte, datagramMax)
	for {
		n, from, err := conn.ReadFrom(buffer)
		if err != nil {
			return
		}
		echo := f.echoIn(buffer[:n], f.request)
		if echo == nil {
			continue
		}
		if fields := strings.Fields(string(echo.Data)); len(fields) == 3 && fields[0] == wordHello {
			source, _ := netip.AddrFromSlice(from.(*net.IPAddr).IP)
			s.remember("icmp", netip.AddrPortFrom(source.Unmap(), uint16(echo.ID)), fields[1:])
		}
	}
}

// PingOptions describes echo requests that are sent to one host. Every
// identifier is a flow of its own; all share one raw socket.
type PingOptions struct {
	Remote      netip.Addr
	Identifiers []uint16
	Name        string        // the server knows each flow as NAME-IDENTIFIER; default "ping"
	Interval    time.Duration // default 1 s
}

// Pinger sends echo requests. The kernel of the remote host answers; a Server
// there with Ping set remembers the sources.
type Pinger struct {
	opts   PingOptions
	family icmpFamily
	conn   *icmp.PacketConn
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	mu    sync.Mutex
	flows map[uint16]*pingFlow
}

type pingFlow struct {
	report  FlowReport
	waiting time.Time
}

// StartPings opens the socket in the namespace and pings until ctx ends or
// Stop is called.
func StartPings(ctx context.Context, in Enter, opts PingOptions) (*Pinger, error) {
	if opts.Interval == 0 {
		opts.Interval = time.Second
	}
	if opts.Name == "" {
		opts.Name = "ping"
	}
	p := &Pinger{opts: opts, family: icmp6, flows: make(map[uint16]*pingFlow)}
	if opts.Remote.Is4() {
		p.family = icmp4
	}
	for _, id := range opts.Identifiers {
		p.flows[id] = &pingFlow{report: FlowReport{
			ID: fmt.Sprintf("%s-%d", opts.Name, id), Proto: "icmp",
			Local: netip.AddrPortFrom(unspecified(opts.Remote), id), Remote: netip.AddrPortFrom(opts.Remote, 0),
		}}
	}
	err := in(func() (err error) {
		p.conn, err = p.family.listen()
		return err
	})
	if err != nil {
		return nil, err
	}
	ctx, p.cancel = context.WithCancel(ctx)
	p.tasks.Go(func() { p.send(ctx) })
	p.tasks.Go(p.receive)
	return p, nil
}

func (p *Pinger) send(ctx context.Context) {
	defer p.conn.Close()
	ticker := time.NewTicker(p.opts.Interval)
	defer ticker.Stop()
	for {
		for _, id := range p.opts.Identifiers {
			p.sendOne(id)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (p *Pinger) sendOne(id uint16) {
	p.mu.Lock()
	f := p.flows[id]
	number := f.report.Sent
	f.report.Sent++
	if f.waiting.IsZero() {
		f.waiting = time.Now()
	}
	payload := fmt.Sprintf("%s %s %d", wordHello, f.report.ID, number)
	p.mu.Unlock()
	message := icmp.Message{Type: p.family.request, Body: &icmp.Echo{ID: int(id), Seq: int(uint16(number)), Data: []byte(payload)}}
	frame, err := message.Marshal(nil) // the kernel fills in ICMPv6's checksum
	if err == nil {
		_, err = p.conn.WriteTo(frame, &net.IPAddr{IP: p.opts.Remote.AsSlice(), Zone: p.opts.Remote.Zone()})
	}
	if err != nil && !errors.Is(err, net.ErrClosed) {
		p.mu.Lock()
		if len(f.report.Errors) < keptErrors {
			f.report.Errors = append(f.report.Errors, err.Error())
		}
		p.mu.Unlock()
	}
}

func (p *Pinger) receive() {
	buffer := make([]byte, datagramMax)
	for {
		n, from, err := p.conn.ReadFrom(buffer)
		if err != nil {
			return
		}
		source, _ := netip.AddrFromSlice(from.(*net.IPAddr).IP)
		echo := p.family.echoIn(buffer[:n], p.family.reply)
		if echo == nil || source.Unmap() != p.opts.Remote.WithZone("") {
			continue
		}
		p.mu.Lock()
		if f := p.flows[uint16(echo.ID)]; f != nil && strings.HasPrefix(string(echo.Data), wordHello+" "+f.report.ID+" ") {
			f.report.Answered++
			f.report.Gaps = endGap(f.report.Gaps, f.waiting)
			f.waiting = time.Time{}
		}
		p.mu.Unlock()
	}
}

// Report tells what became of the flows so far, in the order of the
// identifiers. The sources are known to the server alone: pass it, or nil.
func (p *Pinger) Report(server *Server) Report {
	p.mu.Lock()
	defer p.mu.Unlock()
	var r Report
	for _, id := range p.opts.Identifiers {
		f := p.flows[id].report
		f.Errors = append([]string(nil), f.Errors...)
		f.Gaps = endGap(append([]Gap(nil), f.Gaps...), p.flows[id].waiting)
		if server != nil {
			f.Sources = server.Stream(f.ID).Sources
		}
		r.Flows = append(r.Flows, f)
	}
	return r
}

// Stop ends the pings and returns what became of them; see Report. The server
// reads its raw socket at its own pace, beside the kernel that answers: it gets
// a few seconds to have read every request that was answered.
func (p *Pinger) Stop(server *Server) Report {
	p.cancel()
	p.tasks.Wait()
	for deadline := time.Now().Add(serverLag); server != nil && time.Now().Before(deadline) && !p.readBy(server); {
		time.Sleep(2 * time.Millisecond)
	}
	return p.Report(server)
}

// serverLag bounds how long a loaded machine may keep the server from reading.
const serverLag = 5 * time.Second

func (p *Pinger) readBy(server *Server) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.flows {
		if server.Stream(f.report.ID).Packets < f.report.Answered {
			return false
		}
	}
	return true
}

// Await waits until every identifier has got count answers.
func (p *Pinger) Await(ctx context.Context, count uint64) error {
	for {
		behind := p.Report(nil).filter(func(f FlowReport) bool { return f.Answered < count })
		if len(behind) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %d answers to %s (it has %d): %w", count, behind[0].ID, behind[0].Answered, ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}
