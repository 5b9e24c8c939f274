// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"context"
	"errors"
	"io"
	"time"

	"vippin/policy"
)

// What callers may match.
var (
	ErrClosed   = errors.New("session has ended")
	ErrLost     = errors.New("queue ran over during the bulk")
	ErrSilent   = errors.New("peer is silent")
	ErrStalled  = errors.New("peer does not read")
	ErrVersion  = errors.New("no common version")
	ErrProtocol = errors.New("peer breaks the protocol")
)

// Config is what a session needs to know.
type Config struct {
	Node, Build            string
	Boot                   [16]byte
	MinVersion, MaxVersion uint32 // 0: this package's
	Handler                Handler
	Beat                   time.Duration        // how often State is repeated as a sign of life, default 500 ms; after 6 silent beats the peer is gone
	QueueLimit             int                  // entries waiting or unacknowledged at most, default 65536
	Now                    func() time.Duration // monotonic, default real
}

// Handler gets what the peer says. The calls come one at a time. While one lasts
// nothing more is read, acknowledgements neither: it must not wait for PutBulk.
type Handler interface {
	Hello(Hello)
	State(State)
	// Batch returns the flows it did not take. The slices of b are valid until it
	// returns, the Extra of a flow for ever. The acknowledgement goes out after it.
	Batch(b *Batch) []Refusal
	BulkBegin(groups []string)
	BulkEnd(groups []string, count uint64) // the bulk is complete: what it did not have is gone
	BulkWanted(groups []string)
	Refused(flows []policy.FlowKey, reasons []Reason) // by the peer
	Lost()                                            // our queue ran over, all that waited was dropped, a bulk must follow
}

// Session is a connection with a peer. It serves one Run; a reconnect takes a new
// one. What is put before Run waits; what is put after it is dropped. All methods
// may be called by several goroutines at once.
type Session struct{}

// NewSession makes a session that has not begun.
func NewSession(Config) *Session { return &Session{} }

// Run talks with the peer until ctx ends, the peer goes or breaks the protocol, and
// says which. It closes conn and waits for its goroutines.
func (s *Session) Run(ctx context.Context, conn io.ReadWriteCloser) error { return ErrClosed }

// SetState is told to the peer at once and repeated every beat. The latest wins.
func (s *Session) SetState(State) {}

// Put tells of a flow that is new or changed. What waits of the same key is
// replaced. f is copied, its Extra is not: it must not change any more.
func (s *Session) Put(f *policy.Flow) {}

// Gone tells that a flow has ended, and replaces what waits of the same key.
func (s *Session) Gone(g Gone) {}

// Expect tells of an expectation. It is not kept for a peer that comes later.
func (s *Session) Expect(e *policy.Expectation) {}

// BeginBulk begins to tell of all flows of some groups, "" being those without a
// group. about is how many there will be, 0 if that is unknown; it is for the peer
// to show. An earlier bulk that was not ended is given up.
func (s *Session) BeginBulk(groups []string, about uint64) {}

// PutBulk tells of a flow of the bulk, unless something newer of its key waits. It
// waits while much does. ErrLost: the bulk was given up, begin another.
func (s *Session) PutBulk(ctx context.Context, f *policy.Flow) error { return ErrClosed }

// EndBulk tells the peer that what the bulk did not have is gone.
func (s *Session) EndBulk() {}

// RequestBulk asks the peer for a bulk.
func (s *Session) RequestBulk(groups []string) {}

// Pending tells whether something of a flow waits or is not yet acknowledged.
func (s *Session) Pending(key policy.FlowKey) bool { return false }

// Stats tells how the session does.
func (s *Session) Stats() Stats { return Stats{} }

// Stats is how a session does.
type Stats struct {
	Version        uint32 // in use, 0 before the peer's hello
	Peer           Hello
	Lag            int           // entries waiting or unacknowledged
	Age            time.Duration // of the oldest of them
	Acknowledged   uint64        // flows and gones that the peer has acknowledged
	Lost           uint64        // times that the queue ran over
	Dropped        uint64        // entries that were dropped with it
	Invalid        uint64        // flows of ours that make no sense, not sent
	Unnamed        uint64        // flows of ours whose pin or group State does not have, not sent
	Ignored        uint64        // frames of kinds that this version does not know
	Sent, Received Traffic
}

// Traffic is what went one way.
type Traffic struct {
	Bytes, Batches, Flows, Gones, Expectations uint64
	Refused                                    map[Reason]uint64 // of the flows
	Bulk                                       Bulk
}

// Bulk is how far the last bulk is. A bulk that was acknowledged to its end has
// Done.
type Bulk struct {
	Running, Done bool
	Flows         uint64 // so far
	Total         uint64 // 0 = unknown
}
