// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// subscribe returns a subscription and a function that runs it in the
// background; events closes when Receive returns nil.
func (l *lab) subscribe(t *testing.T, groups Groups, buffer int) (*Listener, func(context.Context) <-chan Event) {
	t.Helper()
	var listener *Listener
	l.router.do(func() (err error) {
		listener, err = listen(groups, buffer)
		return err
	})
	t.Cleanup(func() { _ = listener.Close() })
	return listener, func(ctx context.Context) <-chan Event {
		events := make(chan Event, 10000)
		go func() {
			defer close(events)
			err := listener.Receive(ctx, func(e Event) error {
				if e.Flow != nil {
					e.Flow = e.Flow.Clone()
				}
				events <- e
				return nil
			})
			if err != nil {
				t.Errorf("receive: %v", err)
			}
		}()
		return events
	}
}

func await(t *testing.T, events <-chan Event, want EventType) *Flow {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case event, ok := <-events:
			if !ok {
				t.Fatalf("no more events, want %v", want)
			}
			if event.Type == want {
				return event.Flow
			}
			t.Logf("%v of %+v", event.Type, event.Flow)
		case <-timeout:
			t.Fatalf("no event %v came", want)
		}
	}
}

// What requests of ignored Conns cause is left out, and nothing else.
func TestEventsOfOthersOnly(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	l := newLab(t, nothing)
	listener, run := l.subscribe(t, News|Updates|Destroys, readBuffer)
	if err := listener.Ignore(l.conn); err != nil {
		t.Fatal(err)
	}
	var other *Conn
	l.router.do(func() (err error) {
		other, err = Dial()
		return err
	})
	defer other.Close()
	list := entries(2)
	results, err := l.conn.Create(list[:1])
	allNil(t, results, err)
	results, err = l.conn.Delete([]Ref{{Orig: list[0].Orig}})
	allNil(t, results, err)
	results, err = other.Create(list[1:])
	allNil(t, results, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	select {
	case event := <-run(ctx):
		if event.Type != New || event.Flow.Orig != list[1].Orig {
			t.Errorf("the first event is %v of %v", event.Type, event.Flow.Orig)
		}
	case <-time.After(patience):
		t.Fatal("no event came")
	}
}

func TestEvents(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	l := newLab(t, nothing)
	_, run := l.subscribe(t, News|Updates|Destroys, readBuffer)
	entry := entries(1)[0]
	results, err := l.conn.Create([]Entry{entry}) // after the subscription, before anybody reads
	allNil(t, results, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events := run(ctx)
	born := await(t, events, New)
	if born.Orig != entry.Orig || born.Reply.Destination() != entry.NATSrc || born.Mark != entry.Mark {
		t.Errorf("new: %+v", born)
	}

	server, client := l.server.udp(entry.Orig.Destination()), l.client.udp(entry.Orig.Source())
	send(t, client, entry.Orig.Destination(), "ping")
	send(t, server, receive(t, server, "ping"), "pong")
	receive(t, client, "pong")
	if changed := await(t, events, Update); changed.Status&SeenReply == 0 || changed.Orig != entry.Orig {
		t.Errorf("update: %+v", changed)
	}

	results, err = l.conn.Delete([]Ref{born.Ref()})
	allNil(t, results, err)
	gone := await(t, events, Destroy)
	if gone.Orig != entry.Orig || gone.ID != born.ID || gone.Status&SrcNAT == 0 ||
		gone.OrigCounters == nil || gone.OrigCounters.Packets != 1 || gone.Stop.IsZero() {
		t.Errorf("destroy: %+v", gone)
	}
	cancel()
	for range events { // until Receive has returned
	}
}

func TestOnlyDestroysAreHeard(t *testing.T) {
	l := newLab(t, nothing)
	_, run := l.subscribe(t, Destroys, readBuffer)
	made := entries(1)
	results, err := l.conn.Create(made)
	allNil(t, results, err)
	results, err = l.conn.Delete([]Ref{{Orig: made[0].Orig}})
	allNil(t, results, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if event := <-run(ctx); event.Type != Destroy {
		t.Errorf("heard %v", event.Type)
	}
}

func TestOverrunIsReportedAndOutlived(t *testing.T) {
	l := newLab(t, nothing)
	_, run := l.subscribe(t, News, 4096)
	results, err := l.conn.Create(entries(500)) // nobody reads
	allNil(t, results, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events := run(ctx)
	heard := 0
	for deadline := time.After(patience); ; {
		select {
		case event := <-events:
			if event.Type == New {
				heard++
				continue
			}
			if event.Type != Overrun || event.Flow != nil {
				t.Fatalf("heard %v of %+v", event.Type, event.Flow)
			}
		case <-deadline:
			t.Fatal("no overrun was reported")
		}
		break
	}
	// Nothing is lost after it was told.
	last := entries(600)[599]
	results, err = l.conn.Create([]Entry{last})
	allNil(t, results, err)
	for await(t, events, New).Orig != last.Orig {
		heard++
	}
	if heard >= 500 {
		t.Errorf("heard all %d events: nothing overran", heard)
	}
}

func TestListenerEnds(t *testing.T) {
	l := newLab(t, nothing)
	listener, _ := l.subscribe(t, News, readBuffer)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	never := func(Event) error { return errors.New("must not be called") }
	if err := listener.Receive(ctx, never); err != nil {
		t.Errorf("receive with an ended context: %v", err)
	}
	results, err := l.conn.Create(entries(1))
	allNil(t, results, err)
	enough := errors.New("enough")
	if err := listener.Receive(t.Context(), func(Event) error { return enough }); err != enough {
		t.Errorf("receive whose handler fails: %v", err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- listener.Receive(t.Context(), func(Event) error { return listener.Close() })
	}()
	results, err = l.conn.Create(entries(2)[1:])
	allNil(t, results, err)
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("receive on a closed listener: %v", err)
	}
}

// TestRefusedWithoutPrivilege drops the capability on a thread of its own.
func TestRefusedWithoutPrivilege(t *testing.T) {
	l := newLab(t, nothing)
	var got error
	l.router.do(func() error {
		conn, err := Dial()
		if err != nil {
			return err
		}
		defer conn.Close()
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			return err
		}
		_, got = conn.Get(entries(1)[0].Orig)
		return nil
	})
	if !errors.Is(got, unix.EPERM) {
		t.Errorf("get without CAP_NET_ADMIN: %v", got)
	}
}
