// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
)

// UnloadReport counts the flows that had a mapping. Flows that ended, or that
// conntrack translates to the public end anyway, need nothing and are not
// counted.
type UnloadReport struct {
	Converted int // go on, translated by conntrack itself
	Broken    int // lose their public end
}

const (
	readBatch     = 64 // conntrack look-ups in one exchange
	convertBatch  = 8  // flows whose answers are held at a time: some 100 µs
	convertRounds = 4  // over the mappings, for flows whose entries change under our hands
)

// Unload takes the dataplane out of force and removes everything pinned. Living
// mappings become native conntrack entries first, with the public end as their
// NAT source, so that their flows go on unchanged. If some cannot, it changes
// nothing and returns an error that says how many would break, unless force is
// set. The Dataplane can then only be closed.
func (d *Dataplane) Unload(force bool) (UnloadReport, error) {
	var report UnloadReport
	unlock, err := lockDir(d.dir)
	if err != nil {
		return report, err
	}
	defer unlock()
	conn, err := conntrack.Dial()
	if err != nil {
		return report, fmt.Errorf("unload: %w", err)
	}
	defer func() { _ = conn.Close() }()
	c := &converter{d: d, conn: conn, ordinary: readTimeouts()}
	if err := c.findZones(); err != nil {
		return report, fmt.Errorf("unload: %w", err)
	}
	restore, err := d.disablePins()
	if err != nil {
		return report, errors.Join(fmt.Errorf("unload: %w", err), restore())
	}
	if !force {
		broken, err := c.foresee()
		if err == nil && broken > 0 {
			report.Broken = broken
			err = fmt.Errorf("%d living flows would break: end them first, or force it", broken)
		}
		if err != nil {
			return report, errors.Join(fmt.Errorf("unload: %w", err), restore())
		}
	}
	if err := d.removeFastpath(); err != nil { // nothing passes the programs by from here on
		return report, errors.Join(fmt.Errorf("unload: %w", err), restore())
	}
	if report, err = c.convert(); err != nil {
		return report, errors.Join(fmt.Errorf("unload: %w", err), restore())
	}
	if err := errors.Join(d.detachAll(), d.leaveTier(), RemoveHold(), EndHoldResets(), d.unpinAll()); err != nil {
		return report, fmt.Errorf("unload: %w", err)
	}
	return report, nil
}

// converter turns mappings into native conntrack entries.
type converter struct {
	d        *Dataplane
	conn     *conntrack.Conn
	ordinary *timeouts
	zones    map[flowKey]uint16 // of flows in a conntrack zone, by key with slot 0
}

// findZones learns which flows are in a conntrack zone: the look-ups need it,
// and the maps do not have it.
func (c *converter) findZones() error {
	c.zones = make(map[flowKey]uint16)
	filter := conntrack.Filter{Status: conntrack.SrcNAT, StatusMask: conntrack.SrcNAT}
	return c.conn.Dump(context.Background(), filter, func(flow *conntrack.Flow) error {
		if flow.Reply.Zone == 0 {
			return nil
		}
		if key, ok := replyKey(0, flow.Reply); ok {
			c.zones[key] = flow.Reply.Zone
		}
		return nil
	})
}

// conversion is one mapping with its living conntrack entry.
type conversion struct {
	key   flowKey
	end   publicEnd
	local localEnd
	flow  *conntrack.Flow
}

// living hands every mapping that is not native yet and whose flow lives to
// yield, in batches.
func (c *converter) living(yield func([]conversion) error) error {
	var failed error
	var batch []conversion
	flush := func() bool {
		var alive []conversion
		if alive, failed = c.alive(batch); failed == nil && len(alive) > 0 {
			failed = yield(alive)
		}
		batch = batch[:0]
		return failed == nil
	}
	err := scanMap(c.d.maps.ByLocal, func(key flowKey, end publicEnd) bool {
		if end.Flags&mappingNative != 0 {
			return true
		}
		batch = append(batch, conversion{key: key, end: end})
		return len(batch) < readBatch || flush()
	})
	if err == nil && failed == nil && len(batch) > 0 {
		flush()
	}
	return errors.Join(err, failed)
}

func (c *converter) alive(batch []conversion) ([]conversion, error) {
	tuples := make([]conntrack.Tuple, len(batch))
	for i := range batch {
		key := batch[i].key
		key.Slot = 0
		tuples[i] = replyTuple(&key, c.zones[key])
	}
	flows, err := c.conn.GetBatch(tuples)
	if err != nil {
		return nil, err
	}
	var alive []conversion
	for i, flow := range flows {
		if !isOurs(flow, tuples[i]) {
			continue
		}
		what := &batch[i]
		what.flow = flow
		there, err := found(c.d.maps.ByPublic.Lookup(publicKey(what.key, &what.end), &what.local))
		if err != nil {
			return nil, fmt.Errorf("read map by_public: %w", err)
		}
		if there { // else answers do not find their way now either
			alive = append(alive, *what)
		}
	}
	return alive, nil
}

// foresee counts the flows that no native entry can be made for.
func (c *converter) foresee() (broken int, err error) {
	err = c.living(func(batch []conversion) error {
		for i := range batch {
			if !convertible(&batch[i]) {
				broken++
			}
		}
		return nil
	})
	return broken, err
}

// convertible tells whether a native entry carries the flow as well. Of flows
// with a helper the expectations would be lost; GRE's entry would end with the
// next packet, or after a time that no packet prolongs.
func convertible(what *conversion) bool {
	return what.key.Proto != unix.IPPROTO_GRE && what.flow.Helper == "" && what.flow.Master == nil
}

// convert converts what it can. A round sees the flows whose entries were
// renewed by a packet during the one before.
func (c *converter) convert() (report UnloadReport, err error) {
	for round := range convertRounds {
		left := 0
		err = c.living(func(flows []conversion) error {
			for batch := range slices.Chunk(flows, convertBatch) {
				converted, failed, err := c.convertBatch(batch)
				report.Converted += converted
				left += failed
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil || left == 0 {
			break
		}
		if round == convertRounds-1 {
			report.Broken = left
		}
	}
	return report, err
}

// convertBatch replaces the conntrack entries of some flows and marks their
// mappings native. It returns how many it converted, and of how many it could
// not.
//
// An answer that comes in between must not meet the router itself, whose RST
// would end the flow: until the native entry is there, answers are held off.
// Their senders repeat them.
func (c *converter) convertBatch(batch []conversion) (converted, failed int, err error) {
	var replacements []conntrack.Replacement
	var possible []*conversion
	for i := range batch {
		if convertible(&batch[i]) {
			possible = append(possible, &batch[i])
			replacements = append(replacements, conntrack.Replacement{Old: batch[i].flow.Ref(), New: c.native(&batch[i])})
		}
	}
	failed = len(batch) - len(possible)
	if len(possible) == 0 {
		return 0, failed, nil
	}
	for _, what := range possible {
		if err := c.holdAnswers(what); err != nil {
			return 0, failed, errors.Join(err, c.finish(possible, nil))
		}
	}
	if err := c.d.newEpoch(); err != nil {
		return 0, failed, errors.Join(err, c.finish(possible, nil))
	}
	results, err := c.replace(replacements)
	if err := errors.Join(err, c.finish(possible, results)); err != nil {
		return 0, failed, err
	}
	for _, result := range results {
		if result == nil {
			converted++
			continue
		}
		c.d.log.Debug("convert mapping", "error", result)
		failed++
	}
	return converted, failed, nil
}

// replace is conntrack's Replace, once more where a packet was faster and made a
// new entry, which has another ID.
func (c *converter) replace(replacements []conntrack.Replacement) ([]error, error) {
	results, err := c.conn.Replace(replacements)
	if err != nil {
		return nil, err
	}
	var again []conntrack.Replacement
	var which []int
	for i, result := range results {
		if errors.Is(result, conntrack.ErrExist) {
			replacement := replacements[i]
			replacement.Old.ID = 0
			again, which = append(again, replacement), append(which, i)
		}
	}
	if len(again) == 0 {
		return results, nil
	}
	second, err := c.conn.Replace(again)
	if err != nil {
		return nil, err
	}
	for i, result := range second {
		results[which[i]] = result
	}
	return results, nil
}

// Destinations that the kernel's routing drops without a word, RFC 1122 section
// 3.2.1.3 and RFC 4291 section 2.5.3.
var (
	nowhere4 = netip.AddrFrom4([4]byte{})
	nowhere6 = netip.IPv6Loopback()
)

// holdAnswers lets ingress send the answers of a flow nowhere.
func (c *converter) holdAnswers(what *conversion) error {
	held := what.local
	held.Addr.Word = addrWords(nowhere6)
	if what.flow.Orig.Src.Is4() {
		held.Addr.Word = addrWords(nowhere4)
	}
	return c.setPublic(what, held)
}

// finish lets answers through again: untouched to the native entries that were
// made (results nil), else rewritten as before.
func (c *converter) finish(batch []*conversion, results []error) error {
	var errs []error
	for i, what := range batch {
		local, end := what.local, what.end
		made := i < len(results) && results[i] == nil
		if made {
			local.Flags |= mappingNative
			end.Flags |= mappingNative
		}
		errs = append(errs, c.setPublic(what, local))
		if made {
			errs = append(errs, ignoreNotExist(c.d.maps.ByLocal.Update(what.key, end, ebpf.UpdateExist)))
		}
	}
	if err := errors.Join(append(errs, c.d.newEpoch())...); err != nil {
		return fmt.Errorf("mark mappings native: %w", err)
	}
	return nil
}

func (c *converter) setPublic(what *conversion, local localEnd) error {
	return ignoreNotExist(c.d.maps.ByPublic.Update(publicKey(what.key, &what.end), local, ebpf.UpdateExist))
}

// native is the entry that translates a flow to its public end by itself.
func (c *converter) native(what *conversion) conntrack.Entry {
	flow := what.flow
	entry := conntrack.Entry{
		Orig: flow.Orig, NATSrc: endAddrPort(what.end.Addr.Word, what.end.Port),
		Timeout: max(flow.Timeout, time.Second), Status: seenStatus(flow), Mark: flow.Mark, TCP: flow.TCP, SCTP: flow.SCTP,
	}
	if flow.Status&conntrack.DstNAT != 0 { // port-forwarded elsewhere as well
		entry.NATDst = flow.Reply.Source()
	}
	if flow.Status&conntrack.Offload != 0 { // then the kernel tells neither state nor timeout
		if flow.Orig.Proto == unix.IPPROTO_TCP {
			entry.TCP = &conntrack.TCP{State: conntrack.TCPEstablished}
		}
		entry.Timeout = c.ordinary.of(flow.Orig.Proto, entry.Status, entry.TCP, nil)
	}
	return entry
}

func ignoreNotExist(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

// detachAll takes the programs off every interface.
func (d *Dataplane) detachAll() error {
	list, err := d.attachments()
	errs := []error{err}
	for _, ifindex := range list {
		if err := d.detach(ifindex); err != nil {
			errs = append(errs, fmt.Errorf("interface %d: %w", ifindex, err))
		}
	}
	return errors.Join(errs...)
}

// unpinAll removes the bpffs directory. Whatever is in it is ours: the maps,
// and what an interrupted start left.
func (d *Dataplane) unpinAll() error {
	for _, dir := range []string{filepath.Join(d.dir, linksDir), d.dir} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("unpin: %w", err)
		}
		for _, entry := range entries {
			if err := os.Remove(filepath.Join(dir, entry.Name())); err != nil {
				return fmt.Errorf("unpin: %w", err)
			}
		}
	}
	// A directory that is a mount point of its own stays, empty.
	if err := os.Remove(d.dir); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("unpin: %w", err)
	}
	return nil
}
