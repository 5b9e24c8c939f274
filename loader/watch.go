// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// LinkEventKind says what a LinkEvent is about.
type LinkEventKind uint8

// What can have changed.
const (
	LinkChanged LinkEventKind = 1 + iota // a link came, went or changed
	AddrChanged                          // an address came, went or changed
	Resync                               // anything: Watch has just begun, or events were lost
)

func (k LinkEventKind) String() string {
	switch k {
	case LinkChanged:
		return "link"
	case AddrChanged:
		return "address"
	case Resync:
		return "resync"
	}
	return fmt.Sprintf("LinkEventKind(%d)", uint8(k))
}

// LinkEvent says that something changed: observe again. It carries no state,
// which would be old by the time it is read.
type LinkEvent struct {
	Kind    LinkEventKind
	Ifindex int           // 0 for Resync
	Time    time.Duration // CLOCK_MONOTONIC when it came; of several that were merged, the first
}

const (
	// watchBuffer holds some 10,000 link messages.
	watchBuffer = 8 << 20
	// pendingMax is how many events wait for a slow reader before they are
	// merged into one Resync.
	pendingMax = 256
	// resubscribePause is how long to wait before a failed subscription is
	// tried again.
	resubscribePause = 200 * time.Millisecond
)

// Watch sends an event for every change of links and addresses in the network
// namespace of the calling thread until ctx ends; then it returns nil. The
// first event is a Resync, sent once the subscription stands: whoever observes
// at each event misses nothing. Events are not delayed to gather more. While
// the reader is busy equal ones are merged, so it never holds up the kernel.
// When the kernel lost events, or the socket fails, Watch subscribes anew and
// sends a Resync; an error of the first subscription is returned.
func Watch(ctx context.Context, events chan<- LinkEvent) error {
	socket, err := subscribeLinks()
	if err != nil {
		return err
	}
	pending := newPendingLinks()
	var delivering sync.WaitGroup
	delivering.Go(func() { pending.deliver(ctx, events) })
	defer delivering.Wait() // ctx has ended by then
	for {
		pending.add(LinkEvent{Kind: Resync, Time: Monotonic()})
		err := readLinks(ctx, socket, pending)
		if socket = resubscribeLinks(ctx, err); socket == nil {
			return nil
		}
	}
}

// resubscribeLinks replaces a socket that failed, or returns nil when ctx has
// ended. One that ran over is replaced at once: it would tell of no further
// loss until it has been emptied, and a new one is empty.
func resubscribeLinks(ctx context.Context, err error) *nl.NetlinkSocket {
	for ctx.Err() == nil {
		if !errors.Is(err, unix.ENOBUFS) {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(resubscribePause):
			}
		}
		var socket *nl.NetlinkSocket
		if socket, err = subscribeLinks(); err == nil {
			return socket
		}
	}
	return nil
}

// subscribeLinks opens one socket for links and addresses, so that their
// changes come in the kernel's order. (netlink.LinkSubscribe and AddrSubscribe
// are not used: on ENOBUFS they end without a word that can be matched, and
// they block on their channel for ever once nobody reads it.)
func subscribeLinks() (*nl.NetlinkSocket, error) {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		return nil, fmt.Errorf("subscribe to link and address changes: %w", err)
	}
	if err := socket.SetReceiveBufferSize(watchBuffer, true); err != nil && !errors.Is(err, unix.EPERM) {
		socket.Close()
		return nil, fmt.Errorf("enlarge the receive buffer for link changes: %w", err)
	}
	return socket, nil
}

// readLinks queues what a socket says until ctx ends or reading fails, and
// closes it.
func readLinks(ctx context.Context, socket *nl.NetlinkSocket, pending *pendingLinks) error {
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		socket.Close() // ends a Receive
	})
	defer func() {
		if stop() {
			socket.Close()
		} else {
			<-closed
		}
	}()
	for {
		messages, from, err := socket.Receive()
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if from.Pid != nl.PidKernel {
			continue
		}
		now := Monotonic()
		for _, m := range messages {
			if event, ok := linkEvent(m); ok {
				event.Time = now
				pending.add(event)
			}
		}
	}
}

// linkEvent reads the kind and the interface of a message.
func linkEvent(m syscall.NetlinkMessage) (LinkEvent, bool) {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		if len(m.Data) >= unix.SizeofIfInfomsg {
			return LinkEvent{Kind: LinkChanged, Ifindex: int(nl.DeserializeIfInfomsg(m.Data).Index)}, true
		}
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if len(m.Data) >= unix.SizeofIfAddrmsg {
			return LinkEvent{Kind: AddrChanged, Ifindex: int(nl.DeserializeIfAddrmsg(m.Data).Index)}, true
		}
	}
	return LinkEvent{}, false
}

// pendingLinks are events that were not delivered yet, in order, without
// equals.
type pendingLinks struct {
	mu     sync.Mutex
	events []LinkEvent
	wake   chan struct{} // holds one
}

func newPendingLinks() *pendingLinks { return &pendingLinks{wake: make(chan struct{}, 1)} }

// add never blocks.
func (p *pendingLinks) add(event LinkEvent) {
	p.mu.Lock()
	p.events = mergeLinkEvent(p.events, event)
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default: // already awake
	}
}

// mergeLinkEvent appends an event, unless what waits says as much already: a
// Resync says everything.
func mergeLinkEvent(events []LinkEvent, event LinkEvent) []LinkEvent {
	for _, waiting := range events {
		if waiting.Kind == Resync || waiting.Kind == event.Kind && waiting.Ifindex == event.Ifindex {
			return events
		}
	}
	if len(events) == 0 || event.Kind != Resync && len(events) < pendingMax {
		return append(events, event)
	}
	return []LinkEvent{{Kind: Resync, Time: events[0].Time}}
}

func (p *pendingLinks) take() (event LinkEvent, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.events) == 0 {
		return LinkEvent{}, false
	}
	event = p.events[0]
	p.events = p.events[1:]
	return event, true
}

// deliver sends what is added until ctx ends.
func (p *pendingLinks) deliver(ctx context.Context, events chan<- LinkEvent) {
	for {
		event, ok := p.take()
		if !ok {
			select {
			case <-ctx.Done():
				return
			case <-p.wake:
			}
			continue
		}
		select {
		case <-ctx.Done():
			return
		case events <- event:
		}
	}
}
