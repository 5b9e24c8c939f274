// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vippin/policy"
)

// waysMost bounds the look-ups of routes, to each side.
const waysMost = 8192

// wayKey is flows that would take the same way: of one pin and, on that side, to one
// network or host.
type wayKey struct {
	pin *replicaPin
	to  netip.Prefix
}

// sample is a flow that stands for them.
type sample struct {
	flow  *policy.Flow
	flows uint64
}

// wayFinder asks the routing table.
type wayFinder struct {
	*rehearsal
	handle *netlink.Handle
	links  map[int]*policy.Link
	faces  map[*replicaPin]map[int]bool // interfaces by which the pin's flows may leave
	inward map[netip.Addr]int           // interface to an inside host, 0 = there is none
}

// ways looks where the flows of each pin would leave, and their answers.
func (x *rehearsal) ways(ctx context.Context) error {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open rtnetlink: %w", err)
	}
	defer handle.Close()
	w := &wayFinder{
		rehearsal: x, handle: handle, links: make(map[int]*policy.Link),
		faces: make(map[*replicaPin]map[int]bool), inward: make(map[netip.Addr]int),
	}
	for i := range x.Seen.Links {
		w.links[x.Seen.Links[i].Index] = &x.Seen.Links[i]
	}
	out, back, more := w.collect()
	if more > 0 {
		x.note("%d connections to further networks or of further hosts were not looked at", more)
	}
	for key, s := range back {
		if ctx.Err() != nil {
			break
		}
		w.lookBack(key, s)
	}
	for key, s := range out {
		if ctx.Err() != nil {
			break
		}
		w.lookOut(key, s)
	}
	if ctx.Err() != nil && x.complete {
		x.complete = false
		x.note("time ran out while routes were looked for")
	}
	return nil
}

// collect finds which ways there are, of pins whose interface can be used.
func (w *wayFinder) collect() (out, back map[wayKey]*sample, more uint64) {
	out, back = make(map[wayKey]*sample), make(map[wayKey]*sample)
	unusable := make(map[*replicaPin]string)
	for i := range w.Flows[:w.tried] {
		f := &w.Flows[i]
		pin := w.plan.named[f.Pin]
		if pin == nil || w.bad[i] {
			continue
		}
		why, known := unusable[pin]
		if !known {
			why = w.face(pin)
			unusable[pin] = why
		}
		if why != "" {
			w.missing.add("interface", why, flowText(f))
			continue
		}
		src, dst := f.Src.IP(), f.From.IP()
		net, _ := dst.Prefix(networkBits(dst))
		if !use(back, wayKey{pin, netip.PrefixFrom(src, src.BitLen())}, f) || !use(out, wayKey{pin, net}, f) {
			more++
		}
	}
	return out, back, more
}

// networkBits is how much of an address names a network, without a look at routes.
func networkBits(addr netip.Addr) int {
	if addr.Is4() {
		return 24
	}
	return 48
}

func use(ways map[wayKey]*sample, key wayKey, f *policy.Flow) bool {
	there := ways[key]
	if there == nil {
		if len(ways) >= waysMost {
			return false
		}
		there = &sample{flow: f}
		ways[key] = there
	}
	there.flows++
	return true
}

// face finds the interfaces of a pin, or says why there is none to use.
func (w *wayFinder) face(pin *replicaPin) string {
	link := w.links[pin.Ifindex]
	if pin.Ifindex == 0 || link == nil {
		return fmt.Sprintf("the interface of VLAN %v (%s) is not there", pin.VLAN, pin.Interface)
	}
	if !link.Up {
		return fmt.Sprintf("%s (VLAN %v) is down", link.Name, pin.VLAN)
	}
	w.faces[pin] = map[int]bool{link.Index: true}
	for _, face := range w.Plan.Interfaces {
		if face.Index == link.Index {
			for _, upper := range face.Uppers {
				w.faces[pin][upper] = true
			}
		}
	}
	return ""
}

// lookBack looks whether answers would find an inside host: not by the pin's
// interface, unless it is a neighbour there.
func (w *wayFinder) lookBack(key wayKey, s *sample) {
	host := key.to.Addr()
	route, err := w.route(host, &netlink.RouteGetOptions{})
	where := ""
	switch {
	case err != nil:
		where = reasonText(err)
	case route.Type == unix.RTN_LOCAL:
		where = "is this router's own address"
	case w.faces[key.pin][route.LinkIndex] && len(route.Gw) > 0:
		where = fmt.Sprintf("leads to %v by %s", route.Gw, w.name(route.LinkIndex))
	default:
		w.inward[host] = route.LinkIndex
		return
	}
	w.lacks(fmt.Sprintf("answers on VLAN %v have no way back to the inside host", key.pin.VLAN), s,
		fmt.Sprintf("%v: %s", host, where))
}

// lookOut looks whether packets of an inside host would leave by the pin's
// interface, as they come in here and, where that leads elsewhere, with the mark
// that their connection has.
func (w *wayFinder) lookOut(key wayKey, s *sample) {
	if w.isLone(key.pin, s.flow) {
		w.note("routes by the VIP of VLAN %v are there only while it is: they were not looked for", key.pin.VLAN)
		return
	}
	dst := s.flow.From.IP()
	options := netlink.RouteGetOptions{}
	if inward := w.inward[s.flow.Src.IP()]; inward != 0 {
		options.IifIndex, options.SrcAddr = inward, s.flow.Src.IP().AsSlice()
	}
	where := ""
	for _, mark := range slices.Compact([]uint32{0, s.flow.Mark}) {
		options.Mark = mark
		route, err := w.route(dst, &options)
		switch {
		case err != nil:
			where = reasonText(err)
		case route.Type == unix.RTN_LOCAL:
			where = "is this router's own address"
		case w.faces[key.pin][route.LinkIndex]:
			return
		default:
			where = "leaves by " + w.name(route.LinkIndex)
		}
	}
	w.lacks(fmt.Sprintf("no route to the remote leaves by %s (VLAN %v)", w.name(key.pin.Ifindex), key.pin.VLAN), s,
		fmt.Sprintf("%v: %s", dst, where))
}

// isLone tells whether the VIP is alone in its subnet here: the routes through it
// come with it.
func (w *wayFinder) isLone(pin *replicaPin, f *policy.Flow) bool {
	return !slices.ContainsFunc(w.links[pin.Ifindex].Addrs, func(addr policy.Addr) bool {
		return addr.Prefix.Masked().Contains(f.To.IP())
	})
}

func (w *wayFinder) lacks(why string, s *sample, example string) {
	fault := w.missing.put("route", why, s.flows)
	if len(fault.Example) < examplesMost {
		fault.Example = append(fault.Example, example)
	}
}

func (w *wayFinder) route(to netip.Addr, options *netlink.RouteGetOptions) (netlink.Route, error) {
	routes, err := w.handle.RouteGetWithOptions(to.AsSlice(), options)
	if err != nil {
		return netlink.Route{}, err
	}
	if len(routes) == 0 {
		return netlink.Route{}, unix.ENETUNREACH
	}
	return routes[0], nil
}

func (w *wayFinder) name(ifindex int) string {
	if link := w.links[ifindex]; link != nil {
		return link.Name
	}
	return fmt.Sprintf("interface %d", ifindex)
}
