// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Errors that callers may match with errors.Is.
var (
	// ErrNotExist: no entry has this tuple (or not with this ID).
	ErrNotExist = fs.ErrNotExist
	// ErrExist: an entry with one of the two tuples exists already.
	ErrExist = fs.ErrExist
)

// Error is an operation on one entry that failed. Err is the kernel's error
// number (unix.Errno) or says what is wrong with the request.
type Error struct {
	Op    string // "get", "create", …
	Tuple Tuple  // as it was asked for
	Err   error
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s conntrack entry %v: %v", e.Op, e.Tuple, e.Err)
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// Conn reads and changes the conntrack table of one network namespace. It
// needs CAP_NET_ADMIN there and may be used by several goroutines.
type Conn struct {
	requests *socket
	dumps    *socket // of its own, so that a dump's yield may use the Conn
}

// Dial opens a Conn in the network namespace of the calling thread.
func Dial() (*Conn, error) {
	requests, err := dialSocket(readBuffer)
	if err != nil {
		return nil, err
	}
	dumps, err := dialSocket(readBuffer)
	if err != nil {
		return nil, errors.Join(err, requests.close())
	}
	return &Conn{requests: requests, dumps: dumps}, nil
}

// Close closes the Conn; operations under way fail.
func (c *Conn) Close() error {
	return errors.Join(c.requests.close(), c.dumps.close())
}

// Family restricts a dump to an IP version.
type Family uint8

// The families of a dump.
const (
	AnyFamily Family = unix.AF_UNSPEC
	IPv4      Family = unix.AF_INET
	IPv6      Family = unix.AF_INET6
)

// Filter says which entries a dump is about; the zero value means all. Family,
// status and mark are filtered by the kernel, which makes a dump of few among
// many ten times faster. (CTA_FILTER is not used: the kernel compares IPv6
// addresses there the wrong way round.)
type Filter struct {
	Family             Family
	Status, StatusMask Status // only entries with Status == status & StatusMask
	Mark, MarkMask     uint32 // only entries with Mark == mark & MarkMask
}

// Matches tells whether an entry passes the filter.
func (f Filter) Matches(flow *Flow) bool {
	return (f.Family == AnyFamily || uint8(f.Family) == familyOf(flow.Orig.Src)) &&
		flow.Status&f.StatusMask == f.Status && flow.Mark&f.MarkMask == f.Mark
}

func (f Filter) message() (netlink.Message, error) {
	ae := newEncoder()
	if f.StatusMask != 0 { // Linux 5.15; older ones ignore it
		ae.Uint32(ctaStatus, uint32(f.Status))
		ae.Uint32(ctaStatusMask, uint32(f.StatusMask))
	}
	if f.MarkMask != 0 {
		ae.Uint32(ctaMark, f.Mark)
		ae.Uint32(ctaMarkMask, f.MarkMask)
	}
	attrs, err := ae.Encode()
	if err != nil {
		return netlink.Message{}, err
	}
	return message(msgGet, netlink.Dump, uint8(f.Family), attrs), nil
}

// Dump hands every entry that passes the filter to yield, until yield returns
// an error, which Dump returns, or ctx ends. The table changes meanwhile:
// entries that are born or die may be missing, and one that moves may come
// twice. The Flow is valid during the call; yield may use the Conn, but not for
// another Dump.
func (c *Conn) Dump(ctx context.Context, filter Filter, yield func(*Flow) error) error {
	request, err := filter.message()
	if err != nil {
		return fmt.Errorf("dump conntrack: %w", err)
	}
	var d decoder
	return c.dump(ctx, request, func(m netlink.Message) error {
		flow, err := d.decode(m.Data)
		if err != nil {
			return fmt.Errorf("dump conntrack: %w", err)
		}
		if !filter.Matches(flow) {
			return nil
		}
		return yield(flow)
	})
}

// dump hands every message that answers a request to yield.
func (c *Conn) dump(ctx context.Context, request netlink.Message, yield func(netlink.Message) error) error {
	c.dumps.mu.Lock()
	defer c.dumps.mu.Unlock()
	sent, err := c.dumps.conn.Send(request)
	if err != nil {
		return fmt.Errorf("dump conntrack: write to netfilter socket: %w", err)
	}
	// Whatever happens, the dump is read to its end: the kernel makes it as it
	// is read, and refuses the next one while this one lasts.
	var stopped error
	for done := false; !done; {
		if err := c.dumps.conn.SetReadDeadline(time.Now().Add(answerTimeout)); err != nil {
			return fmt.Errorf("dump conntrack: set deadline of netfilter socket: %w", err)
		}
		err := c.dumps.receive(func(m netlink.Message) error {
			switch {
			case m.Header.Sequence != sent.Header.Sequence:
				return nil // left over from a dump that broke
			case m.Header.Type == netlink.Done || m.Header.Type == netlink.Error:
				done = true
				if err := verdict(m); err != nil && stopped == nil {
					stopped = fmt.Errorf("dump conntrack: %w", err)
				}
			case stopped == nil:
				if stopped = ctx.Err(); stopped != nil {
					stopped = fmt.Errorf("dump conntrack: %w", stopped)
				} else {
					stopped = yield(m)
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("dump conntrack: %w", err)
		}
	}
	return stopped
}

// Get finds the entry that has tuple as its original or its reply tuple, in
// tuple's zone. Without one the error matches ErrNotExist.
func (c *Conn) Get(tuple Tuple) (*Flow, error) {
	flows, err := c.GetBatch([]Tuple{tuple})
	if err != nil {
		return nil, err
	}
	if flows[0] == nil {
		return nil, &Error{Op: "get", Tuple: tuple, Err: unix.ENOENT}
	}
	return flows[0], nil
}

// GetBatch is Get for many tuples at a time. Its answer has the order of the
// tuples, with nil where there is no entry.
func (c *Conn) GetBatch(tuples []Tuple) ([]*Flow, error) {
	flows := make([]*Flow, len(tuples))
	var first error
	err := c.LookUp(tuples, func(i int, flow *Flow) { flows[i] = flow.Clone() }, func(i int, err error) {
		if first == nil {
			first = &Error{Op: "get", Tuple: tuples[i], Err: err}
		}
	})
	if err == nil {
		err = first
	}
	if err != nil {
		return nil, err
	}
	return flows, nil
}
