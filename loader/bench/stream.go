// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"vippin/bpf"
)

// The shape of the flows. Ports differ, so that NAT keeps them and the answers
// need not be told which they are.
const (
	hosts      = 250
	firstPort  = 2000
	ports      = 60_000
	remotePort = 4242
)

// batch is how many frames are on their way at once, the kernel's default.
const batch = 64

// bigEndian is a number as it stands in memory in network order.
func bigEndian(n uint32) uint32 {
	var octets [4]byte
	binary.BigEndian.PutUint32(octets[:], n)
	return binary.NativeEndian.Uint32(octets[:])
}

// words is an address as the programs have it: big-endian in memory.
func words(addr netip.Addr) (w [4]uint32) {
	octets := addr.As16()
	for i := range w {
		w[i] = binary.NativeEndian.Uint32(octets[4*i:])
	}
	return w
}

// stride leads through all flows in an order that is not that of the memory:
// near the golden section of their number, and prime to it.
func stride(flows int) int {
	common := func(a, b int) int {
		for b != 0 {
			a, b = b, a%b
		}
		return a
	}
	n := max(int(0.618*float64(flows)), 1)
	for common(n, flows) != 1 {
		n++
	}
	return n % flows
}

// stream is what the generator shall play.
func (b *bed) stream(flows int, back bool) bpf.GeneratorBenchStream {
	s := bpf.GeneratorBenchStream{
		Hosts: hosts, Ports: ports, FirstPort: firstPort, RemotePort: remotePort,
		Flows: uint32(flows), Stride: uint32(stride(flows)),
	}
	s.Clients.Word, s.Remotes.Word = words(b.clients), words(b.remotes)
	from := b.sides[insideSide]
	if back {
		s.Back, from = 1, b.sides[outsideSide]
		t := b.way.tags(b.vlan)
		s.Tags, s.Tag = uint8(t.count), t.word
		switch b.way.leaves {
		case bpf.GeneratorSeenSEEN_VIP:
			s.Self.Word = words(b.vip)
		case bpf.GeneratorSeenSEEN_UNIQUE:
			s.Self.Word = words(b.unique.Addr())
		default:
			s.ToClients = 1
		}
	}
	copy(s.ToMac[:], from.nearMAC)
	copy(s.FromMac[:], from.farMAC)
	if b.family == ipv6 {
		s.Ipv6 = 1
	} else if b.noChecksum {
		s.NoChecksum = 1
	}
	return s
}

// xdpContext is struct xdp_md.
type xdpContext struct {
	Data, DataEnd, DataMeta, IngressIfindex, RxQueueIndex, EgressIfindex uint32
}

// result is what became of a run.
type result struct {
	sent, arrived uint64
	busy          time.Duration // of the core
}

// rate is packets that arrived a second of the core's time.
func (r result) rate() float64 { return float64(r.arrived) / r.busy.Seconds() }

func (r *result) add(more result) {
	r.sent += more.sent
	r.arrived += more.arrived
	r.busy += more.busy
}

// errLost says that not all packets arrived.
var errLost = errors.New("packets got lost")

// chunk is how many frames are made before it is asked whether to go on.
const chunk = 1_000_000

// play sends packets and counts them at the other side. Too few, and such as
// have the wrong address, are an error. Of a paced stream only those frames
// become packets for which it is time.
func (b *bed) play(s bpf.GeneratorBenchStream, size, frames int) (result, error) {
	from, sink, want := b.sides[insideSide], b.programs.SeenOutside, b.way.leaves
	if s.Back != 0 {
		from, sink, want = b.sides[outsideSide], b.programs.SeenInside, bpf.GeneratorSeenSEEN_CLIENT
	}
	if b.way.xdp == xdpDrop { // this side of the router is the end
		sink = []*ebpf.Map{b.programs.SeenOutside, b.programs.SeenInside}[s.Back]
	}
	if err := b.programs.Stream.Set(s); err != nil {
		return result{}, fmt.Errorf("tell the generator what to play: %w", err)
	}
	if err := b.programs.Progress.Set(bpf.GeneratorBenchProgress{Flow: b.turn % s.Flows}); err != nil {
		return result{}, fmt.Errorf("set the generator back: %w", err)
	}
	before, err := readSeen(sink)
	if err != nil {
		return result{}, err
	}
	busy, err := b.generate(from, s, size, frames)
	if err != nil {
		return result{}, err
	}
	var done bpf.GeneratorBenchProgress
	if err := b.programs.Progress.Get(&done); err != nil {
		return result{}, fmt.Errorf("ask the generator how far it came: %w", err)
	}
	b.turn = done.Flow
	after, err := awaitSeen(sink, before, done.Packets)
	if err != nil {
		return result{}, err
	}
	r, err := judge(done.Packets, before, after, want)
	r.busy = busy
	b.total.add(r)
	return r, err
}

// tries is how often packets are sent again after some got lost: when the kernel
// lets something else onto the core at a bad moment, a veth's ring of 256 packets
// runs over.
const tries = 5

// playAgain plays until no packets get lost; the time of those that were does not
// count.
func (b *bed) playAgain(s bpf.GeneratorBenchStream, size, packets int) (r result, err error) {
	turn := b.turn
	for range tries {
		b.turn = turn
		if r, err = b.play(s, size, packets); !errors.Is(err, errLost) {
			return r, err
		}
	}
	return r, fmt.Errorf("%w, %d times in a row: look what else runs on CPU %d", err, tries, b.cpu)
}

// playAll plays many packets in bites.
func (b *bed) playAll(s bpf.GeneratorBenchStream, size, packets int) (sum result, err error) {
	const bite = 100_000
	for ; packets > 0; packets -= bite {
		r, err := b.playAgain(s, size, min(packets, bite))
		if err != nil {
			return sum, err
		}
		sum.add(r)
	}
	return sum, nil
}

// generate makes the frames and returns the core's time that they took.
func (b *bed) generate(from side, s bpf.GeneratorBenchStream, size, frames int) (busy time.Duration, err error) {
	size += 4 * int(s.Tags)
	at := uint32(batch)
	if s.Paced != 0 {
		at = pacedBatch
	}
	begin, err := b.busy()
	if err != nil {
		return 0, err
	}
	for frames > 0 {
		if err := b.ctx.Err(); err != nil {
			return 0, err
		}
		now := min(frames, chunk)
		frames -= now
		err = in(from.ns, func() error {
			_, err := b.programs.Generate.Run(&ebpf.RunOptions{
				Data:    make([]byte, size),
				Context: xdpContext{DataEnd: uint32(size), IngressIfindex: uint32(from.far)},
				Repeat:  uint32(now), Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES, BatchSize: at,
			})
			return err
		})
		if err != nil {
			return 0, fmt.Errorf("generate packets: %w", err)
		}
	}
	end, err := b.busy()
	return end - begin, err
}

// judge says what became of a run's packets. One lost in a thousand does not
// move a rate.
func judge(sent uint64, before, after seen, want bpf.GeneratorSeen) (result, error) {
	r := result{sent: sent, arrived: after[want] - before[want]}
	for kind := bpf.GeneratorSeenSEEN_CLIENT; kind < bpf.GeneratorSeenSEEN_KINDS; kind++ {
		if n := after[kind] - before[kind]; kind != want && n > 0 {
			return r, fmt.Errorf("%d of %d packets came with the address of %s instead of %s", n, sent, kindNames[kind], kindNames[want])
		}
	}
	switch {
	case sent == 0:
		return r, errors.New("the generator made no packets")
	case r.arrived > sent:
		return r, fmt.Errorf("%d packets arrived of %d: somebody else sends here", r.arrived, sent)
	case r.arrived < sent-sent/1000:
		return r, fmt.Errorf("%w: of %d %d arrived with the address of %s", errLost, sent, r.arrived, kindNames[want])
	}
	return r, nil
}

// seen counts packets by whose address they had.
type seen [bpf.GeneratorSeenSEEN_KINDS]uint64

var kindNames = [...]string{"a stranger", "the client", "the router", "the VIP"}

func readSeen(sink *ebpf.Map) (s seen, err error) {
	for kind := range s {
		var perCPU []uint64
		if err := sink.Lookup(uint32(kind), &perCPU); err != nil {
			return s, fmt.Errorf("ask the sink what it saw: %w", err)
		}
		for _, n := range perCPU {
			s[kind] += n
		}
	}
	return s, nil
}

// awaitSeen reads the sink when the last packets have come, or no more do.
func awaitSeen(sink *ebpf.Map, before seen, packets uint64) (now seen, err error) {
	for range 20 {
		if now, err = readSeen(sink); err != nil {
			return now, err
		}
		var total uint64
		for kind := bpf.GeneratorSeenSEEN_CLIENT; kind < bpf.GeneratorSeenSEEN_KINDS; kind++ {
			total += now[kind] - before[kind]
		}
		if total >= packets {
			return now, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return now, nil
}

// establish makes the flows: conntrack and vippin know them afterwards, with
// traffic both ways; the fast path learns from packets of established ones.
func (b *bed) establish(flows int) error {
	each := flows
	if b.part > 0 {
		each = b.part
	}
	for first := 0; first < flows; first += each {
		if err := b.establishPart(first, min(each, flows-first)); err != nil {
			return err
		}
	}
	if b.pin == nil {
		return nil
	}
	c, err := b.pin.counters()
	if err != nil {
		return err
	}
	if want := uint64(flows); b.way.pin == pinOn && (c.Created != want || c.Clash != 0) {
		return fmt.Errorf("make %d flows: %d were pinned, %d of them at another port", flows, c.Created, c.Clash)
	}
	return nil
}

// partFlows is how many flows are learnt at once where conntrack has no room for all:
// whole remote hosts.
const partFlows = 3 * ports

// some are a part of the flows, from the first on, which is a remote host's first.
func (b *bed) some(first, flows int, back bool) bpf.GeneratorBenchStream {
	s := b.stream(flows, back)
	s.Remotes.Word[3] = bigEndian(bigEndian(s.Remotes.Word[3]) + uint32(first/ports))
	return s
}

func (b *bed) establishPart(first, flows int) error {
	for _, back := range []bool{false, true, false, true} {
		if _, err := b.playAll(b.some(first, flows, back), sizeMin, flows); err != nil {
			return fmt.Errorf("make %d flows: %w", flows, err)
		}
	}
	if err := b.settle(first, flows); err != nil || b.part == 0 {
		return err
	}
	return in(b.router, b.flush)
}
