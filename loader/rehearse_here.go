// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// compare looks for what of this router is in the flows' way, and whether there is
// room for those that it does not have yet.
func (x *rehearsal) compare(ctx context.Context) error {
	conn, err := conntrack.Dial()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	c := comparison{rehearsal: x, conn: conn}
	if c.sockets, err = connectedSockets(); err != nil {
		return err
	}
	for from := 0; from < x.tried; from += rehearseChunk {
		if x.ranOut(ctx, from, "compared with this router's") {
			return nil
		}
		if err := c.chunk(from, min(from+rehearseChunk, x.tried)); err != nil {
			return err
		}
	}
	return c.room()
}

// comparison is what the flows are compared with.
type comparison struct {
	*rehearsal
	conn          *conntrack.Conn
	sockets       map[socketKey]bool
	fresh, pinned uint64 // flows that are not here yet, and those of them with a pin

	which  []int // flows that a request is about
	tuples []conntrack.Tuple
}

// chunk compares some flows.
func (c *comparison) chunk(from, to int) error {
	here := make([]bool, to-from) // the flow is here already
	steps := []func(from, to int, here []bool) error{c.mappings, c.publicEnds, c.originals}
	for _, step := range steps {
		if err := step(from, to, here); err != nil {
			return err
		}
	}
	for i := from; i < to; i++ {
		f := &c.Flows[i]
		if c.sockets[socketKey{f.Proto, f.To, f.From}] {
			c.fail(i, "clash", "a socket of this router has its end on the wire")
		}
		if !c.bad[i] && !here[i-from] {
			c.fresh++
			if f.Pin != (policy.PinName{}) {
				c.pinned++
			}
		}
	}
	return nil
}

// ask collects a tuple of each flow that has none of the answers yet.
func (c *comparison) ask(from, to int, here []bool, tuple func(f *policy.Flow) (conntrack.Tuple, bool, error)) error {
	c.which, c.tuples = c.which[:0], c.tuples[:0]
	for i := from; i < to; i++ {
		if c.bad[i] || here[i-from] {
			continue
		}
		t, ok, err := tuple(&c.Flows[i])
		if err != nil {
			return err
		}
		if ok {
			c.which, c.tuples = append(c.which, i), append(c.tuples, t)
		}
	}
	return nil
}

// lookUp hands the entries there are to found, with the number of their flow.
func (c *comparison) lookUp(found func(i, flow int, e *conntrack.Flow)) error {
	var failed error
	err := c.conn.LookUp(c.tuples, func(i int, e *conntrack.Flow) { found(i, c.which[i], e) },
		func(_ int, err error) { failed = err })
	return errors.Join(err, failed)
}

// mappings looks at public ends that the programs have given away here. Such a
// flow was born on this router; so was this one, or it clashes.
func (c *comparison) mappings(from, to int, here []bool) error {
	err := c.ask(from, to, here, func(f *policy.Flow) (conntrack.Tuple, bool, error) {
		pin := c.plan.named[f.Pin]
		if pin == nil {
			return conntrack.Tuple{}, false, nil
		}
		key := newFlowKey(pin.Slot, f.Proto, wireEnd(f.To), wireEnd(f.From))
		var local localEnd
		held, err := found(c.d.maps.ByPublic.Lookup(&key, &local))
		if err != nil || !held || isNative(key, &local) {
			return conntrack.Tuple{}, false, wrapMap("read map by_public", err)
		}
		key = localKey(key, &local)
		return replyTuple(&key, f.Zone), true, nil
	})
	if err != nil {
		return err
	}
	return c.lookUp(func(i, flow int, e *conntrack.Flow) {
		switch {
		case !isOurs(e, c.tuples[i]): // the mapping waits to be swept
		case flowKeyOf(&e.Orig) == c.Flows[flow].FlowKey:
			here[flow-from] = true
		default:
			c.fail(flow, "clash", "a mapping of this router has its end on the wire")
		}
	})
}

// publicEnds looks for entries that have the flows' ends on the wire.
func (c *comparison) publicEnds(from, to int, here []bool) error {
	err := c.ask(from, to, here, func(f *policy.Flow) (conntrack.Tuple, bool, error) { return wireTuple(f), true, nil })
	if err != nil {
		return err
	}
	return c.lookUp(func(_, flow int, e *conntrack.Flow) {
		if e.Orig == origTuple(&c.Flows[flow].FlowKey) {
			here[flow-from] = true
			return
		}
		c.fail(flow, "clash", "a connection in this router's conntrack table has its end on the wire")
	})
}

// originals looks for entries of the same inside ends with another end on the wire.
func (c *comparison) originals(from, to int, here []bool) error {
	err := c.ask(from, to, here, func(f *policy.Flow) (conntrack.Tuple, bool, error) { return origTuple(&f.FlowKey), true, nil })
	if err != nil {
		return err
	}
	return c.lookUp(func(i, flow int, e *conntrack.Flow) {
		if e.Orig != c.tuples[i] || !c.Believed[c.Flows[flow].Group] {
			c.fail(flow, "clash", "this router's conntrack table has it with another end on the wire")
		}
	})
}

// room counts the flows that would not fit in any more.
func (c *comparison) room() error {
	usage := c.installer.room.usage
	if usage == nil {
		usage = c.conn.Usage
	}
	used, most, err := usage()
	if err != nil {
		return err
	}
	if left := roomIn(uint64(most), uint64(used)); c.fresh > left {
		c.failures.put("full", fmt.Sprintf("conntrack's table here holds %d of %d entries (net.netfilter.nf_conntrack_max)", used, most), c.fresh-left)
	}
	byPublic, mapped := c.d.maps.ByPublic, uint64(0)
	if c.pinned == 0 {
		return nil
	}
	if err := scanMap(byPublic, func(flowKey, localEnd) bool { mapped++; return true }); err != nil {
		return fmt.Errorf("count mappings: %w", err)
	}
	if left := roomIn(uint64(byPublic.MaxEntries()), mapped); c.pinned > left {
		c.failures.put("full", fmt.Sprintf("vippin holds %d of %d mappings here (dataplane.max_flows)", mapped, byPublic.MaxEntries()), c.pinned-left)
	}
	return nil
}

// socketKey is a socket that talks with one other end.
type socketKey struct {
	proto         uint8
	local, remote policy.End
}

// connectedSockets lists those of the network namespace of the calling thread. A
// socket that listens is in no flow's way: answers go to the flow.
func connectedSockets() (map[socketKey]bool, error) {
	sockets := make(map[socketKey]bool)
	for proto, list := range map[uint8]func(uint8) ([]*netlink.Socket, error){
		unix.IPPROTO_TCP: netlink.SocketDiagTCP, unix.IPPROTO_UDP: netlink.SocketDiagUDP,
	} {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			found, err := list(family)
			if errors.Is(err, unix.ENOENT) { // this kernel has no such sockets, or cannot list them
				continue
			}
			if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
				return nil, fmt.Errorf("list sockets: %w", err)
			}
			for _, s := range found {
				if key, ok := socketKeyOf(proto, &s.ID); ok {
					sockets[key] = true
				}
			}
		}
	}
	return sockets, nil
}

func socketKeyOf(proto uint8, id *netlink.SocketID) (key socketKey, ok bool) {
	local, okLocal := netip.AddrFromSlice(id.Source)
	remote, okRemote := netip.AddrFromSlice(id.Destination)
	if !okLocal || !okRemote || remote.IsUnspecified() || id.DestinationPort == 0 {
		return key, false
	}
	return socketKey{
		proto:  proto,
		local:  policy.MakeEnd(netip.AddrPortFrom(local.Unmap(), id.SourcePort)),
		remote: policy.MakeEnd(netip.AddrPortFrom(remote.Unmap(), id.DestinationPort)),
	}, true
}
