// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"
)

// Frame is one frame as it passed an interface, with its VLAN tags. A frame that this machine
// sends may still lack its transport checksum (offload).
type Frame struct {
	Time     time.Time // the kernel's
	Outgoing bool      // leaving through the interface
	Packet   gopacket.Packet
}

// Capture collects the frames of one Ethernet interface, in both directions.
type Capture struct {
	file *os.File
	done chan struct{}

	mu     sync.Mutex
	frames []Frame
	grown  chan struct{} // closed at the next frame
}

// StartCapture listens on an interface of the namespace until Close.
func StartCapture(in Enter, ifname string) (*Capture, error) {
	c := &Capture{done: make(chan struct{}), grown: make(chan struct{})}
	err := in(func() (err error) {
		c.file, err = openPacketSocket(ifname)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("capture on %s: %w", ifname, err)
	}
	go c.run()
	return c, nil
}

func openPacketSocket(ifname string) (*os.File, error) {
	iface, err := net.InterfaceByName(ifname)
	if err != nil {
		return nil, err
	}
	// Protocol 0: nothing arrives before the socket is bound to the interface.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open a packet socket: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20) // smaller: frames may be lost
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("ask for time stamps: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("ask for VLAN tags: %w", err)
	}
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: iface.Index}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind a packet socket: %w", err)
	}
	return os.NewFile(uintptr(fd), "packets of "+ifname), nil
}

func (c *Capture) run() {
	defer close(c.done)
	raw, err := c.file.SyscallConn()
	if err != nil {
		return
	}
	buffer, control := make([]byte, 1<<17), make([]byte, 128)
	for {
		var n, controlled int
		var from unix.Sockaddr
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			n, controlled, _, from, failed = unix.Recvmsg(int(fd), buffer, control, 0)
			return !errors.Is(failed, unix.EAGAIN)
		})
		if err != nil {
			return // closed
		}
		if failed != nil {
			continue // the interface went down; it may come back
		}
		link, _ := from.(*unix.SockaddrLinklayer)
		c.add(Frame{
			Time:     stampIn(control[:controlled]),
			Outgoing: link != nil && link.Pkttype == unix.PACKET_OUTGOING,
			Packet:   gopacket.NewPacket(whole(buffer[:n], control[:controlled]), layers.LayerTypeEthernet, gopacket.NoCopy),
		})
	}
}

// whole copies a frame, and puts back the outer VLAN tag that the kernel has taken
// out of it and tells of in a control message (struct tpacket_auxdata).
func whole(frame, control []byte) []byte {
	messages, err := unix.ParseSocketControlMessage(control)
	for _, m := range messages {
		var aux struct {
			Status, Len, Snaplen uint32
			MAC, Net, TCI, TPID  uint16
		}
		if m.Header.Level != unix.SOL_PACKET || m.Header.Type != unix.PACKET_AUXDATA || err != nil || len(frame) < 12 {
			continue
		}
		if _, err := binary.Decode(m.Data, binary.NativeEndian, &aux); err != nil || aux.Status&unix.TP_STATUS_VLAN_VALID == 0 {
			continue
		}
		tag := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, aux.TPID), aux.TCI)
		return slices.Concat(frame[:12], tag, frame[12:])
	}
	return slices.Clone(frame)
}

// stampIn is the kernel's time stamp among control messages; without one the time
// is now.
func stampIn(control []byte) time.Time {
	messages, err := unix.ParseSocketControlMessage(control)
	for _, m := range messages {
		var at unix.Timespec
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SCM_TIMESTAMPNS || err != nil {
			continue
		}
		if _, err := binary.Decode(m.Data, binary.NativeEndian, &at); err == nil {
			return time.Unix(at.Unix())
		}
	}
	return time.Now()
}

func (c *Capture) add(f Frame) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.frames = append(c.frames, f)
	close(c.grown)
	c.grown = make(chan struct{})
}

// Frames returns what was seen so far and matches; a nil match takes all.
func (c *Capture) Frames(match func(Frame) bool) []Frame {
	frames, _ := c.matching(match)
	return frames
}

func (c *Capture) matching(match func(Frame) bool) ([]Frame, <-chan struct{}) {
	c.mu.Lock()
	all, grown := c.frames, c.grown
	c.mu.Unlock()
	var frames []Frame
	for _, f := range all {
		if match == nil || match(f) {
			frames = append(frames, f)
		}
	}
	return frames, grown
}

// Await waits until at least count frames match, and returns them.
func (c *Capture) Await(ctx context.Context, count int, match func(Frame) bool) ([]Frame, error) {
	for {
		frames, grown := c.matching(match)
		if len(frames) >= count {
			return frames, nil
		}
		select {
		case <-ctx.Done():
			return frames, fmt.Errorf("wait for %d matching frames (seen: %d): %w", count, len(frames), ctx.Err())
		case <-grown:
		}
	}
}

// Close stops the capture; Frames still returns what was seen.
func (c *Capture) Close() error {
	err := c.file.Close()
	<-c.done
	return err
}
