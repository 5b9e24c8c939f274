// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Ref names an entry. With an ID it names this one and, as far as Flow.ID goes,
// not a later one of the same tuple; ID 0 means whichever has the tuple.
type Ref struct {
	Orig Tuple // its original tuple; the reply tuple serves as well
	ID   uint32
}

// Ref names the flow.
func (f *Flow) Ref() Ref { return Ref{Orig: f.Orig, ID: f.ID} }

func (r Ref) encode(to *request) {
	to.tuple(ctaTupleOrig, &r.Orig)
	to.zone(r.Orig.Zone)
	if r.ID != 0 {
		to.uint32(ctaID, r.ID)
	}
}

func (r Ref) encodeDelete(to *request) error {
	if err := r.Orig.checkRequest(); err != nil {
		return err
	}
	to.begin(msgDelete, 0, familyOf(r.Orig.Src))
	r.encode(to)
	return nil
}

// Create makes entries. The first result has one element for each, nil or an
// *Error: ErrExist where one of the two tuples is taken. The second is an
// error of the exchange as a whole; which entries were made is then not known.
func (c *Conn) Create(entries []Entry) ([]error, error) {
	return collect("create", len(entries), func(i int) Tuple { return entries[i].Orig },
		func(failed func(int, error)) error { return c.CreateEach(entries, failed) })
}

// CreateEach is Create, which tells of those that failed alone: with the bare
// error that Create puts into an *Error.
func (c *Conn) CreateEach(entries []Entry, failed func(i int, err error)) error {
	err := c.requests.change(len(entries), func(r *request, i int) error { return entries[i].encode(r) }, failed)
	return wrapChange("create", len(entries), err)
}

// Delete removes entries; a destroy event follows. Results as those of
// Create, with ErrNotExist where there is no such entry.
func (c *Conn) Delete(refs []Ref) ([]error, error) {
	return collect("delete", len(refs), func(i int) Tuple { return refs[i].Orig }, func(failed func(int, error)) error {
		return c.requests.change(len(refs), func(r *request, i int) error { return refs[i].encodeDelete(r) }, failed)
	})
}

// Replacement is an entry that takes another one's place.
type Replacement struct {
	Old Ref
	New Entry
}

// Replace deletes and creates each pair by neighbouring messages of one system
// call, so that a packet hardly ever falls between them. An entry that could
// not be deleted is not replaced unless it had gone already; when only the
// creation fails, the flow is left without one. Results as those of Create, of
// the creation: ErrExist also where the old entry still is.
func (c *Conn) Replace(replacements []Replacement) ([]error, error) {
	encode := func(r *request, i int) error {
		old, entry := replacements[i].Old, &replacements[i].New
		if err := entry.check(); err != nil { // the old entry stays
			return err
		}
		if old.encodeDelete(r) == nil {
			r.owners[len(r.owners)-1] = nobody
		}
		return entry.encode(r)
	}
	return collect("replace", len(replacements), func(i int) Tuple { return replacements[i].New.Orig },
		func(failed func(int, error)) error { return c.requests.change(len(replacements), encode, failed) })
}

// Change is what becomes of an entry that is there.
type Change struct {
	// Tuple is its original tuple, or with Reply its reply tuple: the one on the
	// outside, where the addresses are translated.
	Tuple   Tuple
	Reply   bool
	Timeout time.Duration // as Entry.Timeout; 0: as it is. unix.EPERM with FixedTimeout
	Status  Status        // SeenReply and Assured, which are added and never taken away
	// Mark's bits in MarkMask are written.
	Mark, MarkMask uint32
	TCP            *TCP // as Entry.TCP; nil: as it is
	Liberal        bool // of TCP: as TCP, but the windows only
	SCTP           *SCTP
}

func (c *Change) encode(r *request, status bool) error {
	if err := c.Tuple.checkRequest(); err != nil {
		return err
	}
	if c.TCP != nil || c.SCTP != nil {
		if err := checkProto(c.Tuple.Proto, c.TCP, c.SCTP); err != nil {
			return err
		}
	}
	r.begin(msgNew, 0, familyOf(c.Tuple.Src))
	kind := uint16(ctaTupleOrig)
	if c.Reply {
		kind = ctaTupleReply
	}
	r.tuple(kind, &c.Tuple)
	r.zone(c.Tuple.Zone)
	if c.Timeout > 0 {
		r.uint32(ctaTimeout, seconds(c.Timeout))
	}
	if status && c.Status&settable != 0 {
		r.uint32(ctaStatus, uint32(c.Status&settable|Confirmed))
	}
	if c.MarkMask != 0 {
		r.uint32(ctaMark, c.Mark&c.MarkMask)
	}
	if c.MarkMask != 0 && ^c.MarkMask != 0 {
		r.uint32(ctaMarkMask, c.MarkMask)
	}
	if c.Liberal {
		r.liberal()
	} else {
		r.protoInfo(c.TCP, c.SCTP)
	}
	return nil
}

// Update changes entries. failed is told of those that could not be, with
// ErrNotExist where there is no such entry. The error is of the exchange as a
// whole; which entries were changed is then not known.
func (c *Conn) Update(changes []Change, failed func(i int, err error)) error {
	var again []int
	err := c.requests.change(len(changes), func(r *request, i int) error { return changes[i].encode(r, true) },
		func(i int, err error) {
			// The kernel wants every bit repeated that is set already, and has
			// changed the timeout by then.
			if errors.Is(err, unix.EBUSY) && changes[i].Status&settable != settable {
				again = append(again, i)
				return
			}
			failed(i, err)
		})
	if err == nil && len(again) > 0 {
		err = c.requests.change(len(again), func(r *request, i int) error { return changes[again[i]].encode(r, false) },
			func(i int, err error) { failed(again[i], err) })
	}
	return wrapChange("update", len(changes), err)
}

// collect turns what a run says of the changes that failed into one result for
// each.
func collect(op string, n int, tuple func(i int) Tuple, run func(failed func(int, error)) error) ([]error, error) {
	results := make([]error, n)
	err := run(func(i int, err error) { results[i] = &Error{Op: op, Tuple: tuple(i), Err: err} })
	if err != nil {
		return nil, wrapChange(op, n, err)
	}
	return results, nil
}

func wrapChange(op string, n int, err error) error {
	if err != nil {
		return fmt.Errorf("%s %d conntrack entries: %w", op, n, err)
	}
	return nil
}
