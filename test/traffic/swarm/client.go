// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// again is how long a flow that is being opened waits for its first answer
// before it asks once more.
const again = 400 * time.Millisecond

// flow is one client flow.
type flow struct {
	proto    Proto
	id       int
	slot     Slot
	fd       int // UDP and ICMP: shared with others; -1 = not opened
	to       unix.Sockaddr
	number   uint32
	opened   bool // answered for the first time
	answered bool // in phase After
	broken   bool
	made     time.Time // TCP: when the handshake was over
	stream   stream
}

// crowd is a running part of a layout.
type crowd struct {
	*loop
	Crowd
	phase   Phase
	flows   [Protos][]*flow // by running number on this host
	all     []*flow         // in the order they are opened
	opening pace
	retry   pace
	rings   []ring
	sockets map[uint16]int // UDP: by source port
	icmp    int
	buffer  []byte
	failed  error // the first that is no flow's fate
}

// ring is flows that are asked at one pace.
type ring struct {
	pace
	flows []*flow
}

// startCrowd begins to open the flows.
func startCrowd(plan Crowd) (*crowd, error) {
	l, err := newLoop(2 * time.Millisecond)
	if err != nil {
		return nil, err
	}
	c := &crowd{loop: l, Crowd: plan, sockets: make(map[uint16]int), icmp: -1, buffer: make([]byte, 2048)}
	for k := 0; ; k++ { // the kinds take turns
		more := false
		for p := range Protos {
			id := k*plan.Hosts + plan.Host
			if id >= plan.Flows[p] {
				continue
			}
			more = true
			f := &flow{proto: Proto(p), id: id, slot: plan.Slot(Proto(p), id), fd: -1}
			f.to = sockaddr(plan.Server, f.slot.ServerPort)
			c.flows[p] = append(c.flows[p], f)
			c.all = append(c.all, f)
		}
		if !more {
			break
		}
	}
	now := time.Now()
	whole := time.Duration(float64(len(c.all)) / float64(max(1, plan.Rate)) * float64(time.Second))
	c.opening = pace{start: now, interval: max(whole, time.Millisecond), size: len(c.all), burst: len(c.all), once: true}
	c.retry = pace{start: now, interval: again, size: len(c.all), burst: len(c.all)}
	c.tick = c.onTick
	go c.run()
	return c, nil
}

func (c *crowd) onTick(now time.Time) {
	from, to := c.opening.due(now)
	for i := from; i < to; i++ {
		c.open(c.all[i])
	}
	if c.rings == nil {
		from, to = c.retry.due(now)
		for i := from; i < to; i++ {
			if f := c.all[i%len(c.all)]; f.fd >= 0 && !f.opened && f.proto != TCP {
				c.ask(f)
			}
		}
	}
	for i := range c.rings {
		r := &c.rings[i]
		from, to := r.due(now)
		for k := from; k < to; k++ {
			c.ask(r.flows[k%len(r.flows)])
		}
	}
}

// settle gives every flow its pace; called when all are open, and at the fault.
func (c *crowd) settle(phase Phase) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.phase = phase
	var steady, sparse ring
	for _, f := range c.all {
		if phase == Living && c.sparse(f.id) {
			sparse.flows = append(sparse.flows, f)
		} else {
			steady.flows = append(steady.flows, f)
		}
	}
	steady.interval, sparse.interval = c.Interval, c.Sparse
	c.rings = nil
	for _, r := range []ring{steady, sparse} {
		r.start, r.size, r.burst = time.Now(), len(r.flows), len(r.flows)
		c.rings = append(c.rings, r)
	}
}

// open makes a flow's socket and asks for the first time.
func (c *crowd) open(f *flow) {
	var err error
	switch f.proto {
	case TCP:
		err = c.connect(f)
	case UDP:
		f.fd, err = c.udpSocket(f.slot.SourcePort)
	case ICMP:
		f.fd, err = c.icmpSocket()
	}
	if err != nil {
		f.broken = true
		c.fail(fmt.Errorf("open %s flow %d: %w", f.proto, f.id, err))
		return
	}
	if f.proto != TCP {
		c.ask(f)
	}
}

func (c *crowd) fail(err error) {
	if c.failed == nil {
		c.failed = err
	}
}

func (c *crowd) udpSocket(port uint16) (int, error) {
	if fd, ok := c.sockets[port]; ok {
		return fd, nil
	}
	fd, err := socket(unix.SOCK_DGRAM, 0, c.Local, port)
	if err != nil {
		return -1, err
	}
	c.sockets[port] = fd
	return fd, c.add(fd, unix.EPOLLIN, func(uint32) { c.readUDP(fd) })
}

func (c *crowd) icmpSocket() (int, error) {
	if c.icmp >= 0 {
		return c.icmp, nil
	}
	fd, err := icmpSocket(c.Local)
	if err != nil {
		return -1, err
	}
	c.icmp = fd
	return fd, c.add(fd, unix.EPOLLIN, func(uint32) { c.readICMP() })
}

// ask sends a flow's next request. What does not get out is as good as lost.
func (c *crowd) ask(f *flow) {
	if f.fd < 0 || f.broken {
		return
	}
	r := record{proto: f.proto, phase: c.phase, id: uint32(f.id), number: f.number}
	if c.Decoys {
		r.id |= decoyID
	}
	f.number++
	message := c.buffer[:echoHeader+recordLen]
	r.put(message[echoHeader:])
	switch f.proto {
	case TCP:
		if !f.stream.connected {
			return
		}
		c.write(f, message[echoHeader:])
	case UDP:
		_ = unix.Sendto(f.fd, message[echoHeader:], 0, f.to)
	case ICMP:
		putEcho(message, c.Server.Is6(), f.slot.SourcePort, uint16(r.number))
		_ = unix.Sendto(f.fd, message, 0, f.to)
	}
}

// answered takes an answer that came to a flow's own socket.
func (c *crowd) answered(f *flow, r record) {
	f.opened = true
	f.answered = f.answered || r.phase == After
}

// flowOf finds the flow that a record belongs to.
func (c *crowd) flowOf(proto Proto, r record) *flow {
	id := int(r.id &^ decoyID)
	k := id / c.Hosts
	if r.proto != proto || id%c.Hosts != c.Host || k >= len(c.flows[proto]) {
		return nil
	}
	return c.flows[proto][k]
}

func (c *crowd) readUDP(fd int) {
	for {
		n, from, err := unix.Recvfrom(fd, c.buffer, 0)
		if err != nil {
			return
		}
		r, ok := parse(c.buffer[:n])
		if !ok {
			continue
		}
		if f := c.flowOf(UDP, r); f != nil && f.fd == fd && addrPort(from).Port() == f.slot.ServerPort {
			c.answered(f, r)
		}
	}
}

func (c *crowd) readICMP() {
	for {
		n, from, err := unix.Recvfrom(c.icmp, c.buffer, 0)
		if err != nil {
			return
		}
		id, r, ok := readEcho(c.buffer[:n], c.Server.Is6(), false)
		if !ok || addrPort(from).Addr() != c.Server {
			continue
		}
		if f := c.flowOf(ICMP, r); f != nil && f.slot.SourcePort == id {
			c.answered(f, r)
		}
	}
}

// Progress is how far a crowd has come.
type Progress struct {
	Flows, Opened, Broken int
	Answered              int         // in phase After
	Waiting               [Protos]int // not opened, of these
	Failed                string
}

func (c *crowd) progress() (p Progress) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.all {
		p.Flows++
		p.Opened += count(f.opened)
		p.Broken += count(f.broken)
		p.Waiting[f.proto] += count(!f.opened)
		p.Answered += count(f.answered && !f.broken)
	}
	if c.failed != nil {
		p.Failed = c.failed.Error()
	}
	return p
}

func count(yes bool) int {
	if yes {
		return 1
	}
	return 0
}

func (c *crowd) states() []FlowState {
	c.mu.Lock()
	defer c.mu.Unlock()
	states := make([]FlowState, len(c.all))
	for i, f := range c.all {
		states[i] = FlowState{
			Proto: f.proto, ID: f.id, Port: f.slot.SourcePort, Sparse: c.sparse(f.id),
			Answered: f.answered, Broken: f.broken, Made: f.made,
		}
	}
	return states
}
