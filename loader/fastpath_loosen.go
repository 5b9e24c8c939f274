// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vippin/bpf"
	"vippin/loader/conntrack"
)

type looseAsk = bpf.FastpathFastAsk

// looseMost is how many wait to be made liberal. Whoever finds no room is asked for
// again by the packets that follow.
const looseMost = 8192

// loosener has conntrack pass the segments of TCP connections outside the windows that
// it knows: those that are to take the fast path, where conntrack does not see them.
// Else it would take their FIN or RST for invalid.
type loosener struct {
	asks             chan looseAsk
	done, gone, lost atomic.Uint64
}

// loosened is how many TCP connections Run has made liberal.
func (f *Fastpath) loosened() uint64 { return f.follow.loosener.done.Load() }

// openLoosener opens conntrack in the network namespace of the calling thread.
func (f *Fastpath) openLoosener() (*loosening, error) {
	conn, err := conntrack.Dial()
	if err != nil {
		return nil, fmt.Errorf("loosen TCP windows for the fast path: %w", err)
	}
	return &loosening{fastpath: f, loosener: &f.follow.loosener, conn: conn}, nil
}

// loosening is a loosener at work.
type loosening struct {
	fastpath *Fastpath
	*loosener
	conn    *conntrack.Conn
	failing bool
}

func (l *loosening) close() { _ = l.conn.Close() }

// listen queues what the programs ask for, and waits for nothing.
func (l *loosening) listen(ctx context.Context) error {
	return readRing(ctx, l.fastpath.maps.Asks, "what the fast path asks for", decodeAsk, func(ask looseAsk) error {
		select {
		case l.asks <- ask:
		default:
			l.lost.Add(1)
		}
		return nil
	})
}

func decodeAsk(record []byte) (ask looseAsk, err error) {
	_, err = binary.Decode(record, binary.NativeEndian, &ask)
	return ask, err
}

// run makes those that wait liberal, many at once, until ctx ends.
func (l *loosening) run(ctx context.Context) error {
	changes := make([]conntrack.Change, 0, installBatch)
	for {
		select {
		case <-ctx.Done():
			return nil
		case ask := <-l.asks:
			changes = append(changes[:0], looseChange(&ask))
		}
		for more := true; more && len(changes) < cap(changes); {
			select {
			case ask := <-l.asks:
				changes = append(changes, looseChange(&ask))
			default:
				more = false
			}
		}
		l.change(ctx, changes)
	}
}

func (l *loosening) change(ctx context.Context, changes []conntrack.Change) {
	failed := uint64(0)
	err := l.conn.Update(changes, func(int, error) { failed++ }) // it is gone
	if err != nil {
		if ctx.Err() == nil && !l.failing {
			l.fastpath.log.Warn("TCP connections stay off the fast path for now", "error", err)
		}
		l.failing = true
		l.lost.Add(uint64(len(changes)))
		return
	}
	l.failing = false
	l.gone.Add(failed)
	l.done.Add(uint64(len(changes)) - failed)
}

func looseChange(ask *looseAsk) conntrack.Change {
	src, dst := endAddrPort(ask.Src.Word, ask.Sport), endAddrPort(ask.Dst.Word, ask.Dport)
	return conntrack.Change{Liberal: true, Tuple: conntrack.Tuple{
		Src: src.Addr(), Dst: dst.Addr(), Proto: unix.IPPROTO_TCP, SrcPort: src.Port(), DstPort: dst.Port(),
	}}
}
