// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	fastBuffer = 16 << 20 // octets of events that wait
	// fastReopen is how long to wait before a socket that failed is opened again.
	fastReopen = 200 * time.Millisecond
	fastPoll   = time.Second // for what no event tells of
)

// rtnetlinkGroups are those with something in them that a forwarded packet's fate
// depends on; _NETCONF tells of sysctls like forwarding and rp_filter.
var rtnetlinkGroups = []uint32{
	unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_TC, unix.RTNLGRP_NEXTHOP,
	unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV4_NETCONF,
	unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV6_NETCONF,
}

// xfrmGroups are XFRMNLGRP_EXPIRE, _SA, _POLICY and _MIGRATE, include/uapi/linux/xfrm.h.
var xfrmGroups = []uint32{2, 3, 4, 7}

// fastFollow is what Run is about, and goes on being so if it is called again.
type fastFollow struct {
	ended    endedFlows
	hops     hopKiller
	firewall firewallWatch
	loosener loosener
	buffer   int // of the sockets, in octets
}

func newFastFollow() *fastFollow {
	return &fastFollow{
		ended: endedFlows{wake: make(chan struct{}, 1)}, hops: hopKiller{wake: make(chan struct{}, 1), again: hopAgain},
		firewall: firewallWatch{wake: make(chan struct{}, 1)}, loosener: loosener{asks: make(chan looseAsk, looseMost)},
		buffer: fastBuffer,
	}
}

// Run follows what changes in this network namespace (of the calling thread) and
// bumps, kills hops, sets the pace, makes TCP flows liberal that are to be learnt, and
// has as much of the tables in use as there is to enter, until ctx ends.
func (f *Fastpath) Run(ctx context.Context) error {
	w := &fastWatch{fastpath: f, reopen: make(chan *fastFeed)}
	defer w.close()
	if err := w.open(); err != nil {
		return fmt.Errorf("follow changes for the fast path: %w", err)
	}
	loose, err := f.openLoosener()
	if err != nil {
		return err
	}
	defer loose.close()
	group, ctx := errgroup.WithContext(ctx)
	for _, feed := range w.feeds {
		group.Go(func() error { return w.follow(ctx, feed) })
	}
	group.Go(func() error { return f.killHops(ctx) })
	group.Go(func() error { return f.forgetEnded(ctx) })
	group.Go(func() error { return f.fitTables(ctx) })
	group.Go(func() error { return loose.listen(ctx) })
	group.Go(func() error { return loose.run(ctx) })
	w.keep(ctx)
	return group.Wait()
}

// fastWatch is one Run. What has to be done in its network namespace is done by the
// goroutine that called Run.
type fastWatch struct {
	fastpath *Fastpath
	feeds    []*fastFeed
	reopen   chan *fastFeed // failed
}

// fastFeed is a subscription to changes.
type fastFeed struct {
	what   string
	family int
	groups []uint32
	// seed makes up for what was missed, once the subscription stands.
	seed func() error
	take func([]netlink.Message)
	lost func() // nothing is known until it stands again

	conn *netlink.Conn
	open chan struct{} // conn is a new one
}

func (w *fastWatch) open() error {
	f, routes := w.fastpath, newRouteView()
	w.feeds = []*fastFeed{{
		what: "routes, links, addresses and neighbours", family: unix.NETLINK_ROUTE, groups: rtnetlinkGroups,
		seed: func() error { return f.routesLost(routes) },
		take: func(messages []netlink.Message) { f.routesChanged(routes, messages) },
		lost: func() { f.holdVirtual(nil); f.tables.bump() },
	}, {
		what: "the firewall", family: unix.NETLINK_NETFILTER, groups: []uint32{unix.NFNLGRP_NFTABLES},
		seed: func() error { f.rulesChanged(); return nil },
		take: func([]netlink.Message) { f.rulesChanged() },
		lost: f.tables.bump,
	}, {
		what: "IPsec policies", family: unix.NETLINK_XFRM, groups: xfrmGroups,
		seed: func() error { f.tables.bump(); return nil },
		take: func([]netlink.Message) { f.tables.bump() },
		lost: f.tables.bump,
	}}
	for i, feed := range w.feeds {
		feed.open = make(chan struct{}, 1)
		err := feed.subscribe(f.follow.buffer)
		if feed.family == unix.NETLINK_XFRM && errors.Is(err, unix.EPROTONOSUPPORT) {
			w.feeds = w.feeds[:i] // a kernel without IPsec
			break
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *fastWatch) close() {
	for _, feed := range w.feeds {
		if feed.conn != nil {
			_ = feed.conn.Close()
		}
	}
}

// subscribe has the events come that happen from now on, and then makes up for what
// was missed.
func (feed *fastFeed) subscribe(buffer int) error {
	conn, err := netlink.Dial(feed.family, nil)
	if err != nil {
		return fmt.Errorf("subscribe to %s: %w", feed.what, err)
	}
	err = conn.SetReadBuffer(buffer)
	for _, group := range feed.groups {
		err = errors.Join(err, conn.JoinGroup(group))
	}
	if err == nil {
		err = feed.seed()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("subscribe to %s: %w", feed.what, err), conn.Close())
	}
	feed.conn = conn
	return nil
}

// follow takes a feed's events until ctx ends. A socket that ran over is replaced: it
// would tell of no further loss until it has been emptied.
func (w *fastWatch) follow(ctx context.Context, feed *fastFeed) error {
	for {
		conn := feed.conn
		stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
		err := feed.receive(conn)
		if !stop() {
			return nil
		}
		_ = conn.Close()
		feed.lost()
		if !errors.Is(err, unix.ENOBUFS) {
			w.fastpath.log.Warn("following changes for the fast path failed, trying again", "of", feed.what, "error", err)
			if !rest(ctx, fastReopen) {
				return nil
			}
		}
		select {
		case w.reopen <- feed:
		case <-ctx.Done():
			return nil
		}
		select {
		case <-feed.open:
		case <-ctx.Done():
			return nil
		}
	}
}

func (feed *fastFeed) receive(conn *netlink.Conn) error {
	for {
		messages, err := conn.Receive()
		if err != nil {
			return err
		}
		feed.take(messages)
	}
}

// rest tells whether ctx still goes on after some time.
func rest(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// keep does what has to be done in the network namespace of Run.
func (w *fastWatch) keep(ctx context.Context) {
	f := w.fastpath
	poll := time.NewTicker(fastPoll)
	defer poll.Stop()
	settled := time.NewTimer(0)
	defer settled.Stop()
	var again time.Duration // before rules are read once more
	for {
		select {
		case <-ctx.Done():
			return
		case feed := <-w.reopen:
			w.again(ctx, feed)
		case <-f.follow.firewall.wake:
			settled.Reset(max(again, rulesSettle))
		case <-settled.C:
			again = f.classify()
		case <-poll.C:
			f.pollLegacy()
		}
	}
}

// again opens a feed, however often it takes. Until then nothing is followed of it,
// so the flows are judged anew all the time.
func (w *fastWatch) again(ctx context.Context, feed *fastFeed) {
	for {
		err := feed.subscribe(w.fastpath.follow.buffer)
		if err == nil {
			feed.open <- struct{}{}
			return
		}
		w.fastpath.tables.bump()
		if !rest(ctx, fastReopen) {
			return
		}
	}
}
