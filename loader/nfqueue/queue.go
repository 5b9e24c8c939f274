// SPDX-License-Identifier: Apache-2.0

package nfqueue

import (
	"context"
	"errors"
)

// Config is how a queue is to be served.
type Config struct {
	Queue      uint16 // its number
	MaxLen     uint32 // packets that wait at most; 0 = the kernel's default, 1024
	CopyRange  uint32 // octets of each packet that are read; 0 = all
	FailOpen   bool   // what finds the queue or the socket full goes on; else it is dropped
	GSO        bool   // super-packets come as they are; else the kernel segments them
	ReadBuffer int    // of the socket, octets, beyond net.core.rmem_max too; 0 = the system's default
}

// Errors that callers may match with errors.Is.
var (
	ErrTaken        = errors.New("taken by another process")
	ErrNotSupported = errors.New("not supported by this kernel")
)

// Source is a queue as its users see it; tests have others.
type Source interface {
	// Run hands every packet to handle until ctx ends, then returns nil. One
	// goroutine at a time; handle must not block, and gives no verdict itself if
	// that may wait.
	Run(ctx context.Context, handle func(*Packet)) error
	// SetVerdicts decides on packets. A packet that the kernel has let go
	// meanwhile is no error.
	SetVerdicts(verdict Verdict, ids ...uint32) error
	Counts() Counts
	Close() error
}

// Counts are since Open.
type Counts struct {
	Packets   uint64 // that were handed on
	Overruns  uint64 // times the socket's buffer was full: with FailOpen, packets went on unseen
	Malformed uint64 // messages that could not be read
	Late      uint64 // verdicts on packets that were gone
}

// Queue is a queue that this process serves. It ends when the process does: what
// waits then is dropped.
type Queue struct{}

var _ Source = (*Queue)(nil)

// Open takes a queue in the network namespace of the calling thread.
func Open(Config) (*Queue, error) { return nil, errors.ErrUnsupported }

// Run is Source's.
func (q *Queue) Run(ctx context.Context, handle func(*Packet)) error { return errors.ErrUnsupported }

// SetVerdicts is Source's.
func (q *Queue) SetVerdicts(verdict Verdict, ids ...uint32) error { return errors.ErrUnsupported }

// Counts is Source's.
func (q *Queue) Counts() Counts { return Counts{} }

// Close gives the queue back.
func (q *Queue) Close() error { return errors.ErrUnsupported }
