// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// stranger is a peer that says whatever the test has it say.
type stranger struct {
	t    *testing.T
	s    *Session
	r    *router
	conn net.Conn
	done chan error
	hi   chan struct{} // the session's hello was read
	eof  chan struct{}
}

// meet runs a session with a stranger, who reads all that comes unless deaf.
func meet(t *testing.T, deaf bool, change func(*Config)) *stranger {
	p := &stranger{t: t, r: newRouter(), done: make(chan error, 1), hi: make(chan struct{}), eof: make(chan struct{})}
	config := Config{Node: "router-a", Handler: p.r}
	if change != nil {
		change(&config)
	}
	p.s = NewSession(config)
	var conn net.Conn
	conn, p.conn = net.Pipe()
	ctx, stop := context.WithCancel(context.Background())
	go func() { p.done <- p.s.Run(ctx, conn) }()
	go func() {
		defer close(p.eof)
		if deaf {
			return
		}
		from := bufio.NewReader(p.conn)
		for n := 0; protodelim.UnmarshalFrom(from, &WireFrame{}) == nil; n++ {
			if n == 0 {
				close(p.hi)
			}
		}
	}()
	t.Cleanup(func() {
		stop()
		p.conn.Close()
		<-p.eof
		p.done <- <-p.done
	})
	return p
}

// say sends messages; it does not mind that the session has ended.
func (p *stranger) say(frames ...*WireFrame) {
	for _, f := range frames {
		if _, err := protodelim.MarshalTo(p.conn, f); err != nil {
			return
		}
	}
}

// verdict is what the session ends with.
func (p *stranger) verdict() error {
	select {
	case err := <-p.done:
		p.done <- err
		return err
	case <-time.After(time.Minute):
		return errors.New("the session goes on")
	}
}

func hello(low, high uint32) *WireFrame {
	return &WireFrame{Kind: &WireFrame_Hello{Hello: &WireHello{VersionMin: low, VersionMax: high, Node: "stranger", Boot: make([]byte, 16)}}}
}

func state() *WireFrame {
	wire, _ := stateToWire(ours)
	return &WireFrame{Kind: &WireFrame_State{State: wire}}
}

func batch(seq uint64, flows ...*WireFlow) *WireFrame {
	return &WireFrame{Kind: &WireFrame_Batch{Batch: &WireBatch{Seq: seq, Flows: flows}}}
}

func ack(seq uint64, refusals ...*WireRefusal) *WireFrame {
	return &WireFrame{Kind: &WireFrame_Ack{Ack: &WireAck{Seq: seq, Refusals: refusals}}}
}

func wireFlow(n int) *WireFlow {
	_, ids := stateToWire(ours)
	f := udpFlow(n)
	return flowToWire(&f, ids)
}

// The session takes none of this, and the error says why.
func TestNonsense(t *testing.T) {
	begin := &WireFrame{Kind: &WireFrame_BulkBegin{BulkBegin: &WireBulkBegin{Bulk: 1}}}
	finish := func(n uint64) *WireFrame {
		return &WireFrame{Kind: &WireFrame_BulkEnd{BulkEnd: &WireBulkEnd{Bulk: n}}}
	}
	strange := wireFlow(1)
	strange.Pin = 9
	for _, c := range []struct {
		want  error
		text  string
		words []*WireFrame
	}{
		{ErrProtocol, "hello comes first", []*WireFrame{state()}},
		{ErrProtocol, "hello comes first", []*WireFrame{{}}},
		{ErrProtocol, "hello comes first and once", []*WireFrame{hello(1, 1), hello(1, 1)}},
		{ErrVersion, "stranger () speaks 2 to 3, this router 1 to 1", []*WireFrame{hello(2, 3)}},
		{ErrProtocol, "hello: version_min is 0", []*WireFrame{hello(0, 3)}},
		{ErrSequence, "0 after 0", []*WireFrame{hello(1, 1), state(), batch(0)}},
		{ErrSequence, "2 after 0", []*WireFrame{hello(1, 1), state(), batch(2)}},
		{ErrSequence, "1 after 1", []*WireFrame{hello(1, 1), state(), batch(1, wireFlow(1)), batch(1, wireFlow(1))}},
		{ErrSequence, "3 after 1", []*WireFrame{hello(1, 1), state(), batch(1), batch(3)}},
		{ErrProtocol, "pin id 1 is not", []*WireFrame{hello(1, 1), batch(1, wireFlow(1))}},
		{ErrProtocol, "batch: batch 1: flow 1: pin id 9", []*WireFrame{hello(1, 1), state(), batch(1, wireFlow(1), strange)}},
		{ErrProtocol, "ack: of batch 1, when 0 was sent", []*WireFrame{hello(1, 1), state(), ack(1)}},
		{ErrProtocol, "bulk 1 is not under way", []*WireFrame{hello(1, 1), state(), finish(1)}},
		{ErrProtocol, "bulk 2 is not under way", []*WireFrame{hello(1, 1), state(), begin, finish(2)}},
		{ErrProtocol, "bulk 1 is not under way", []*WireFrame{hello(1, 1), state(), begin, finish(1), finish(1)}},
		{ErrProtocol, "hello comes first", []*WireFrame{digest(nil)}},
		{ErrProtocol, "digest: 262145 octets, over 262144", []*WireFrame{hello(1, 1), state(), digest(make([]byte, MaxDigest+1))}},
	} {
		p := meet(t, false, nil)
		p.say(c.words...)
		if err := p.verdict(); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("want %s, got %v", c.text, err)
		}
		if n := len(p.r.heard); n > 1 {
			t.Errorf("%s: %d flows were taken", c.text, n)
		}
	}
}

func TestGarbage(t *testing.T) {
	for _, c := range []struct {
		want error
		said []byte
	}{
		{ErrProtocol, []byte("GET / HTTP/1.1\r\nHost: router\r\n\r\n" + strings.Repeat("x", 100))},
		{ErrProtocol, binary.AppendUvarint(nil, MaxFrame+1)},
		{ErrProtocol, binary.AppendUvarint(nil, 1<<63)},
		{ErrProtocol, []byte{2, 1<<3 | 2, 5}},                          // a length that goes beyond the frame
		{ErrProtocol, []byte{4, 1<<3 | 2, 0, 2<<3 | 2, 0}},             // two messages in one frame
		{ErrProtocol, []byte{1, 7}},                                    // no such wire type
		{io.ErrUnexpectedEOF, []byte{100, 1}},                          // ends in the middle
		{io.EOF, nil},                                                  // hangs up
		{io.ErrUnexpectedEOF, []byte{0x80}},                            // ends in a length
		{ErrProtocol, []byte(strings.Repeat("\xff", 20))},              // a length without an end
		{ErrProtocol, append([]byte{16}, make([]byte, 16)...)},         // field number 0
		{ErrProtocol, []byte{3, 1<<3 | 3, 1<<3 | 4, 0}},                // a group, then nothing
		{ErrProtocol, append([]byte{1 + 1 + 3, 1<<3 | 2, 3}, 1, 2, 3)}, // a hello that is none
	} {
		p := meet(t, false, nil)
		p.conn.SetWriteDeadline(time.Now().Add(time.Minute))
		p.conn.Write(c.said)
		if c.want != ErrProtocol {
			<-p.hi
			p.conn.Close()
		}
		if err := p.verdict(); !errors.Is(err, c.want) {
			t.Errorf("%.20q: want %v, got %v", c.said, c.want, err)
		}
	}
}

// A peer of the next version: it says things that this one does not know.
func TestNextVersion(t *testing.T) {
	p := meet(t, false, nil)
	unknown := protowire.AppendString(protowire.AppendTag(nil, 99, protowire.BytesType), "news")
	unknown = protowire.AppendFixed64(protowire.AppendTag(unknown, 500, protowire.Fixed64Type), 7)
	unknown = protowire.AppendVarint(protowire.AppendTag(unknown, 600, protowire.VarintType), 7)
	odd := func(m proto.Message) { m.ProtoReflect().SetUnknown(unknown) }
	hi, st, b, f := hello(1, 2), state(), batch(1), wireFlow(1)
	f.Bits, f.Extra = 0xff, &WireExtra{Helper: "ftp"}
	b.GetBatch().Flows = []*WireFlow{f}
	for _, m := range []proto.Message{hi, hi.GetHello(), st, st.GetState(), st.GetState().Groups[0], st.GetState().Pins[0], b, b.GetBatch(), f, f.Extra} {
		odd(m)
	}
	news := &WireFrame{}
	odd(news)
	p.say(hi, news, st, news, b)
	p.r.until(t, "a flow", func() bool { return len(p.r.flows) == 1 })
	if s := p.s.Stats(); s.Version != 1 || s.Ignored != 2 || s.Peer.MaxVersion != 2 {
		t.Errorf("%+v", s)
	}
	if got := p.r.flows[udpFlow(1).FlowKey]; got.Bits != allBits || got.Extra.Helper != "ftp" || got.Pin != pinName {
		t.Errorf("got %+v", got)
	}
}

func TestVersions(t *testing.T) {
	for _, c := range []struct {
		a, b [2]uint32
		want uint32 // 0: none
	}{
		{[2]uint32{1, 1}, [2]uint32{1, 1}, 1},
		{[2]uint32{1, 1}, [2]uint32{1, 2}, 1},
		{[2]uint32{1, 3}, [2]uint32{2, 2}, 2},
		{[2]uint32{1, 1}, [2]uint32{2, 2}, 0},
		{[2]uint32{2, 3}, [2]uint32{1, 1}, 0},
	} {
		p := newPair(t, func(a, b *Config) {
			a.MinVersion, a.MaxVersion, b.MinVersion, b.MaxVersion = c.a[0], c.a[1], c.b[0], c.b[1]
		})
		if c.want == 0 {
			p.done.Wait() // both end by themselves
			p.stop()
			if !errors.Is(p.errA, ErrVersion) || !errors.Is(p.errB, ErrVersion) {
				t.Errorf("%v and %v: %v, %v", c.a, c.b, p.errA, p.errB)
			}
			continue
		}
		p.a.SetState(ours)
		p.rb.until(t, "a state", func() bool { return len(p.rb.state.Groups) > 0 })
		if a, b := p.a.Stats().Version, p.b.Stats().Version; b != c.want || a != c.want && a != 0 {
			t.Errorf("%v and %v speak %d and %d", c.a, c.b, a, b)
		}
		p.end()
	}
}

func TestSilentPeer(t *testing.T) {
	for _, words := range [][]*WireFrame{nil, {hello(1, 1), state()}} {
		synctest.Test(t, func(t *testing.T) {
			p := meet(t, false, nil)
			p.say(words...)
			start := time.Now()
			if err := p.verdict(); !errors.Is(err, ErrSilent) {
				t.Errorf("after %d words: %v", len(words), err)
			}
			if took := time.Since(start); took < 3*time.Second || took > 3500*time.Millisecond {
				t.Errorf("gone after %v", took)
			}
		})
	}
}

// A handler that takes its time does not make the peer silent.
func TestSlowHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := meet(t, false, nil)
		p.r.hold = make(chan struct{})
		p.say(hello(1, 1), state(), batch(1, wireFlow(1)))
		pass(time.Minute)
		close(p.r.hold)
		synctest.Wait()
		if len(p.done) != 0 {
			t.Errorf("ended: %v", p.verdict())
		}
	})
}

// A peer that beats but never reads: memory stays bounded, then the session ends.
func TestDeafPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := meet(t, true, func(c *Config) { c.QueueLimit = 3000 })
		var beats sync.WaitGroup
		defer beats.Wait()
		beats.Go(func() {
			p.say(hello(1, 1))
			for {
				if _, err := protodelim.MarshalTo(p.conn, state()); err != nil {
					return
				}
				time.Sleep(500 * time.Millisecond)
			}
		})
		most := 0
		for n := range 20000 {
			putMany(p.s, n, n+1)
			most = max(most, p.s.Stats().Lag)
		}
		synctest.Wait()
		if p.r.losses == 0 || most > 3001 {
			t.Errorf("%d losses, %d entries in the queue", p.r.losses, most)
		}
		if err := p.verdict(); !errors.Is(err, ErrStalled) {
			t.Errorf("ended with %v", err)
		}
	})
}

// A peer that floods while it does not read what it is owed.
func TestFloodWithoutReading(t *testing.T) {
	p := meet(t, true, nil)
	p.r.refuse[udpFlow(1).FlowKey] = ReasonFull
	go io.ReadFull(p.conn, make([]byte, 64)) // hello, and no more
	p.say(hello(1, 1), state())
	for seq := range uint64(3 * window) {
		p.say(batch(seq+1, wireFlow(1)))
	}
	if err := p.verdict(); !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), "without acknowledgement") {
		t.Error(err)
	}
	if owed := len(p.s.acks.refused); owed > window {
		t.Errorf("%d acknowledgements are kept", owed)
	}
}

// A peer that does not acknowledge gets a window of batches and no more.
func TestWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := meet(t, false, nil)
		p.s.SetState(ours)
		p.say(hello(1, 1), state())
		putMany(p.s, 0, 2*window*batchFlows)
		pass(1100 * time.Millisecond) // not at a beat
		if s := p.s.Stats(); s.Sent.Batches != window || s.Sent.Flows > window*batchFlows || s.Lag != 2*window*batchFlows {
			t.Errorf("%+v", s)
		}
		p.say(ack(window))
		pass(10 * time.Millisecond)
		if s := p.s.Stats(); s.Sent.Batches != 2*window {
			t.Errorf("an acknowledgement opens it for %d batches", s.Sent.Batches-window)
		}
	})
}

func TestBadAcks(t *testing.T) {
	for _, c := range []struct {
		text string
		ack  *WireFrame
	}{
		{"of batch 2, when 1 was sent", ack(2)},
		{"of batch 0", ack(0)},
		{"refuses a flow that batch 1 does not have", ack(1, &WireRefusal{Index: 1, Reason: 1})},
		{"reason is 0", ack(1, &WireRefusal{})},
	} {
		p := meet(t, false, nil)
		p.s.SetState(ours)
		putMany(p.s, 0, 1)
		p.say(hello(1, 1), state())
		for p.s.Stats().Sent.Batches == 0 {
			runtime.Gosched()
		}
		p.say(c.ack)
		if err := p.verdict(); !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("want %s, got %v", c.text, err)
		}
	}
}

// Refusals of a newer peer may have reasons that this one does not know.
func TestUnknownReason(t *testing.T) {
	p := meet(t, false, nil)
	p.s.SetState(ours)
	putMany(p.s, 0, 1)
	p.say(hello(1, 1), state())
	for p.s.Stats().Sent.Batches == 0 {
		runtime.Gosched()
	}
	p.say(ack(1, &WireRefusal{Reason: 77}))
	p.r.until(t, "a refusal", func() bool { return len(p.r.nos) == 1 })
	if why := p.r.nos[udpFlow(0).FlowKey]; why.String() != "reason_77" || ReasonNoPin.String() != "no_pin" {
		t.Errorf("refused with %v", why)
	}
}
