// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"errors"
	"fmt"
	"slices"
	"sync"
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
	ErrSequence = fmt.Errorf("%w: sequence of batches", ErrProtocol)
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
	// The peer promises that a key is in b once only; the session does not look.
	Batch(b *Batch) []Refusal
	BulkBegin(groups []string)
	BulkEnd(groups []string, count uint64) // the bulk is complete: what it did not have is gone
	BulkWanted(groups []string)
	Refused(flows []policy.Flow, reasons []Reason) // by the peer
	// Acked is told, after SetPrompt, of flows that the peer has taken, as they were
	// sent; of them something newer may wait. The slice is valid until it returns.
	Acked(flows []policy.Flow)
	Digest(digest []byte) // of the peer, see SetDigest; the handler may keep it
	Lost()                // our queue ran over, all that waited was dropped, a bulk must follow
}

// Session is a connection with a peer. It serves one Run; a reconnect takes a new
// one. What is put before Run waits; what is put after it is dropped. All methods
// may be called by several goroutines at once, but there is one bulk at a time.
type Session struct {
	config  Config
	calls   sync.Mutex // of the handler, one at a time
	done    chan struct{}
	wake    chan struct{} // the writer has something to do
	hurry   chan struct{} // and it must not wait for more
	greeted chan struct{} // our hello is with the peer
	ready   chan struct{} // the peer's hello is here
	lost    chan struct{} // the queue ran over
	alive   watch

	mu       sync.Mutex // guards what follows; no call of the handler is made under it
	closed   bool
	queue    queue
	state    State
	stateDue bool
	prompt   bool // see SetPrompt
	asked    bool // the peer is prompt
	digest   digestOut
	wanted   []string      // groups to ask a bulk of
	room     chan struct{} // closed when a bulk may go on; nil = nobody waits
	bulk     bulkOut
	acks     acks
	sent     uint64 // seq of the last batch
	acked    uint64 // seq of the last one that the peer has acknowledged
	stats    Stats
}

// bulkOut is the bulk that is told to the peer.
type bulkOut struct {
	number uint64
	open   bool   // begun and neither ended nor lost
	ended  bool   // its end was sent
	last   uint64 // seq of the last batch before that
}

// NewSession makes a session that has not begun.
func NewSession(c Config) *Session {
	if c.MinVersion == 0 {
		c.MinVersion = MinVersion
	}
	if c.MaxVersion == 0 {
		c.MaxVersion = MaxVersion
	}
	if c.Beat == 0 {
		c.Beat = 500 * time.Millisecond
	}
	if c.QueueLimit == 0 {
		c.QueueLimit = 65536
	}
	if c.Now == nil {
		start := time.Now()
		c.Now = func() time.Duration { return time.Since(start) }
	}
	return &Session{
		config:  c,
		done:    make(chan struct{}),
		wake:    make(chan struct{}, 1),
		hurry:   make(chan struct{}, 1),
		greeted: make(chan struct{}),
		ready:   make(chan struct{}),
		lost:    make(chan struct{}, 1),
		queue:   newQueue(),
		stats:   Stats{Sent: newTraffic(), Received: newTraffic()},
	}
}

// SetState is told to the peer at once and repeated every beat. The latest wins. The
// session keeps the slices. What the peer would not take is left out: more than
// MaxGroups and MaxPins, and names longer than MaxName. Prompt is SetPrompt's to say.
func (s *Session) SetState(state State) {
	s.mu.Lock()
	s.state, s.stateDue = state, true
	s.mu.Unlock()
	poke(s.wake)
}

// Put tells of a flow that is new or changed. What waits of the same key is
// replaced. f is copied, its Extra is not: it must not change any more.
func (s *Session) Put(f *policy.Flow) {
	err := checkFlow(f)
	s.enqueue(err, func(now time.Duration) { s.queue.put(now, f) })
}

// Gone tells that a flow has ended, and replaces what waits of the same key.
func (s *Session) Gone(g Gone) {
	err := checkGone(&g)
	s.enqueue(err, func(now time.Duration) { s.queue.gone(now, &g) })
}

// Expect tells of an expectation. It is not kept for a peer that comes later, nor is
// it part of a bulk.
func (s *Session) Expect(e *policy.Expectation) {
	err := checkExpectation(e)
	copied := *e
	s.enqueue(err, func(now time.Duration) {
		in := lineNews
		if s.bulk.open {
			in = lineBulk // behind the flow that expects it
		}
		s.queue.mark(now, entryExpectation, &copied, in)
	})
}

// enqueue puts an entry that makes sense in the queue, which may run over.
func (s *Session) enqueue(invalid error, put func(now time.Duration)) {
	now := s.config.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	if invalid != nil {
		s.stats.Invalid++
		return
	}
	put(now)
	if s.queue.len() > s.config.QueueLimit {
		s.overflow()
	}
	poke(s.wake)
}

// overflow drops all that waits. The peer must not sweep at the end of a bulk that
// is not whole, so its end is dropped or will not come.
func (s *Session) overflow() {
	s.stats.Lost++
	s.stats.Dropped += uint64(s.queue.drop())
	s.bulk.open = false
	s.stats.Sent.Bulk.Running = false
	s.makeRoom()
	poke(s.lost)
}

// RequestBulk asks the peer for a bulk.
func (s *Session) RequestBulk(groups []string) {
	s.mu.Lock()
	s.wanted = usable(slices.Concat(s.wanted, groups))
	s.mu.Unlock()
	poke(s.wake)
}

// usable leaves out what the peer would not take, and what comes twice.
func usable(groups []string) []string {
	groups = slices.Clone(groups)
	slices.Sort(groups)
	groups = slices.DeleteFunc(slices.Compact(groups), func(name string) bool { return checkName(name) != nil })
	return groups[:min(len(groups), MaxGroups)]
}

// Pending tells whether something of a flow waits or is not yet acknowledged.
func (s *Session) Pending(key policy.FlowKey) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queue.pending(key)
}

// poke wakes who waits on c, now or when it comes to wait.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
