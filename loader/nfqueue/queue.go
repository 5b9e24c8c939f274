// SPDX-License-Identifier: Apache-2.0

package nfqueue

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
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

// Verdict is what becomes of a packet, <linux/netfilter.h>.
type Verdict uint32

// The verdicts.
const (
	Drop   Verdict = 0
	Accept Verdict = 1 // it goes on behind the hook function that queued it
	Repeat Verdict = 4 // it goes through that hook function again
)

// Source is a queue as its users see it; tests have others.
type Source interface {
	// Run hands every packet to handle until ctx ends, then returns nil. One at a
	// time: packets that come meanwhile wait in the socket's buffer.
	Run(ctx context.Context, handle func(*Packet)) error
	// SetVerdicts decides on packets, from any goroutine. They go on in the call.
	// One that the kernel has let go meanwhile is no error.
	SetVerdicts(verdict Verdict, ids ...uint32) error
	Counts() Counts
	Close() error
}

// Counts are since Open.
type Counts struct {
	Packets   uint64 // that were handed on
	Overruns  uint64 // packets that found the socket's buffer full: with FailOpen they went on unseen, else they are lost
	Malformed uint64 // messages that could not be read
	Late      uint64 // verdicts on packets that were gone
}

// Queue is a queue that this process serves. What waits when it is closed, or
// when the process ends, is dropped by the kernel.
type Queue struct {
	number uint16
	conn   *netlink.Conn
	raw    syscall.RawConn
	room   int // octets of the longest message

	packets, dropped, malformed, late atomic.Uint64
}

var _ Source = (*Queue)(nil)

// attributesRoom is for what comes with a packet's octets.
const attributesRoom = 4096

// verdictBatch is how many verdicts go into one message to the kernel.
const verdictBatch = 128

// Open takes a queue in the network namespace of the calling thread. Rules that
// fill it are best made afterwards.
func Open(config Config) (*Queue, error) {
	q, err := open(config)
	if err != nil {
		return nil, fmt.Errorf("open NFQUEUE %d: %w", config.Queue, err)
	}
	return q, nil
}

func open(config Config) (q *Queue, err error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = conn.Close()
		}
	}()
	// An overrun is counted by the kernel. As an error it would keep every packet
	// away until the buffer is empty.
	if err := conn.SetOption(netlink.NoENOBUFS, true); err != nil {
		return nil, err
	}
	if config.ReadBuffer > 0 {
		if err := conn.SetReadBuffer(config.ReadBuffer); err != nil {
			return nil, fmt.Errorf("enlarge the receive buffer to %d octets: %w", config.ReadBuffer, err)
		}
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	bind, err := config.bind()
	if err != nil {
		return nil, err
	}
	if _, err := conn.Execute(bind); err != nil {
		return nil, explain(config.Queue, err)
	}
	begin, err := config.begin()
	if err != nil {
		return nil, err
	}
	if _, err := conn.Send(begin); err != nil {
		return nil, err
	}
	return &Queue{number: config.Queue, conn: conn, raw: raw, room: int(config.copyRange()) + attributesRoom}, nil
}

// Close gives the queue back. Run must have ended.
func (q *Queue) Close() error {
	q.overruns()
	if err := q.conn.Close(); err != nil {
		return fmt.Errorf("close NFQUEUE %d: %w", q.number, err)
	}
	return nil
}

// Run is Source's.
func (q *Queue) Run(ctx context.Context, handle func(*Packet)) error {
	if err := q.run(ctx, handle); err != nil && ctx.Err() == nil {
		return fmt.Errorf("read NFQUEUE %d: %w", q.number, err)
	}
	return nil
}

func (q *Queue) run(ctx context.Context, handle func(*Packet)) error {
	if err := q.conn.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		_ = q.conn.SetReadDeadline(time.Unix(1, 0)) // ends the read below
	})
	defer func() {
		if !stop() {
			<-ended
		}
	}()
	buffer := make([]byte, q.room)
	var packet Packet
	for {
		n, err := q.read(buffer)
		if err != nil {
			return err
		}
		// The kernel does not fill the last attribute up, the parser wants it so.
		messages, err := syscall.ParseNetlinkMessage(buffer[:min((n+3)&^3, len(buffer))])
		if err != nil {
			q.malformed.Add(1)
			continue
		}
		for i := range messages {
			if err := q.take(&messages[i], &packet, handle); err != nil {
				return err
			}
		}
	}
}

// read waits for a datagram.
func (q *Queue) read(buffer []byte) (n int, err error) {
	failed := q.raw.Read(func(fd uintptr) bool {
		for {
			n, err = unix.Read(int(fd), buffer)
			if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOBUFS) {
				return !errors.Is(err, unix.EAGAIN)
			}
		}
	})
	if failed != nil {
		return 0, failed
	}
	return n, os.NewSyscallError("recv", err)
}

// take deals with one message: a packet, or what a verdict failed of.
func (q *Queue) take(m *syscall.NetlinkMessage, packet *Packet, handle func(*Packet)) error {
	switch m.Header.Type {
	case unix.NFNL_SUBSYS_QUEUE<<8 | messagePacket:
		if packet.decode(m.Data) != nil {
			q.malformed.Add(1)
			return nil
		}
		q.packets.Add(1)
		handle(packet)
	case unix.NLMSG_ERROR:
		if len(m.Data) < 4 {
			q.malformed.Add(1)
			return nil
		}
		switch errno := unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data))); errno {
		case 0:
		case unix.ENOENT: // its interface went, or its time was over
			q.late.Add(1)
		default:
			return errno
		}
	}
	return nil
}

// SetVerdicts is Source's.
func (q *Queue) SetVerdicts(decision Verdict, ids ...uint32) error {
	for batch := range slices.Chunk(ids, verdictBatch) {
		messages := make([]netlink.Message, len(batch))
		for i, id := range batch {
			var err error
			if messages[i], err = verdict(q.number, decision, id); err != nil {
				return fmt.Errorf("decide on packets of NFQUEUE %d: %w", q.number, err)
			}
		}
		if _, err := q.conn.SendMessages(messages); err != nil {
			return fmt.Errorf("decide on packets of NFQUEUE %d: %w", q.number, err)
		}
	}
	return nil
}

// Counts is Source's.
func (q *Queue) Counts() Counts {
	return Counts{Packets: q.packets.Load(), Overruns: q.overruns(), Malformed: q.malformed.Load(), Late: q.late.Load()}
}
