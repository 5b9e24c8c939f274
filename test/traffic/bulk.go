// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Bulk is one transfer of many octets over TCP.
type Bulk struct {
	Octets   int64
	Took     time.Duration
	Sent     string         // SHA-256 at the sender, in hexadecimal
	Received string         // SHA-256 at the receiver
	Source   netip.AddrPort // the client's end as the server saw it
}

// Put sends octets of pseudo-random data to a Server at remote. It fails when
// the two checksums differ.
func Put(ctx context.Context, in Enter, remote netip.AddrPort, octets int64) (Bulk, error) {
	return PutFrom(ctx, in, netip.AddrPort{}, remote, octets)
}

// PutFrom is Put from a local end, whose address may be left out.
func PutFrom(ctx context.Context, in Enter, local, remote netip.AddrPort, octets int64) (Bulk, error) {
	return bulk(ctx, in, local, remote, wordPut, octets)
}

// Get fetches octets of pseudo-random data from a Server at remote. It fails
// when the two checksums differ.
func Get(ctx context.Context, in Enter, remote netip.AddrPort, octets int64) (Bulk, error) {
	return GetFrom(ctx, in, netip.AddrPort{}, remote, octets)
}

// GetFrom is Get to a local end, whose address may be left out.
func GetFrom(ctx context.Context, in Enter, local, remote netip.AddrPort, octets int64) (Bulk, error) {
	return bulk(ctx, in, local, remote, wordGet, octets)
}

func bulk(ctx context.Context, in Enter, local, remote netip.AddrPort, word string, octets int64) (Bulk, error) {
	line, err := OpenLine(ctx, in, local, remote)
	if err != nil {
		return Bulk{Octets: octets}, err
	}
	defer line.Close()
	if word == wordPut {
		return line.Put(octets)
	}
	return line.Get(octets)
}

// Line is a TCP connection to a Server over which transfers go, one after the
// other.
type Line struct {
	Source netip.AddrPort // the client's end as the server saw it first

	conn   *net.TCPConn
	reader *bufio.Reader
	remote netip.AddrPort
	stop   func() bool
}

// OpenLine connects, from a local end whose address may be left out. The line
// breaks when ctx ends.
func OpenLine(ctx context.Context, in Enter, local, remote netip.AddrPort) (*Line, error) {
	conn, err := Dial(ctx, in, "tcp", local, remote, 10*time.Second)
	if err != nil {
		return nil, err
	}
	l := &Line{conn: conn.(*net.TCPConn), reader: bufio.NewReaderSize(conn, 1024), remote: remote}
	l.stop = context.AfterFunc(ctx, func() { conn.Close() })
	if l.Source, err = l.Ask(); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// Ask asks the server which source it sees.
func (l *Line) Ask() (netip.AddrPort, error) { return askSource(l.conn, l.reader) }

// Pace keeps both ends from sending faster than so many octets a second. TCP spreads
// them over the time then, and no queue on the way fills.
func (l *Line) Pace(octetsPerSecond int) error {
	rate := strconv.Itoa(octetsPerSecond)
	if err := pace(l.conn, rate); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(l.conn, "%s %s\n", wordPace, rate); err != nil {
		return fmt.Errorf("ask %s to %s: %w", l.remote, wordPace, err)
	}
	return nil
}

// Local is the client's own end.
func (l *Line) Local() netip.AddrPort { return l.conn.LocalAddr().(*net.TCPAddr).AddrPort() }

// Close ends the connection by a FIN.
func (l *Line) Close() error {
	l.stop()
	return l.conn.Close()
}

// Reset ends the connection by a RST.
func (l *Line) Reset() error {
	if err := l.conn.SetLinger(0); err != nil {
		return fmt.Errorf("have the connection to %s reset: %w", l.remote, err)
	}
	return l.Close()
}

// Put is one transfer to the server. It fails when the two checksums differ.
func (l *Line) Put(octets int64) (Bulk, error) { return l.transfer(wordPut, octets) }

// Get is one transfer from the server.
func (l *Line) Get(octets int64) (Bulk, error) { return l.transfer(wordGet, octets) }

func (l *Line) transfer(word string, octets int64) (Bulk, error) {
	result := Bulk{Octets: octets, Source: l.Source}
	arguments := fmt.Sprintf("%d %d", octets, rand.Uint64())
	start := time.Now()
	if _, err := fmt.Fprintf(l.conn, "%s %s\n", word, arguments); err != nil {
		return result, fmt.Errorf("ask %s to %s: %w", l.remote, word, err)
	}
	var mine string
	var err error
	if word == wordPut {
		mine, err = sendBulk(l.conn, arguments)
	} else {
		mine, err = receiveBulk(l.reader, arguments)
	}
	if err != nil {
		return result, fmt.Errorf("%s %d octets at %s: %w", word, octets, l.remote, err)
	}
	theirs, err := l.reader.ReadString('\n')
	if err != nil {
		return result, fmt.Errorf("read the checksum of %s: %w", l.remote, err)
	}
	result.Took = time.Since(start)
	result.Sent = strings.TrimPrefix(mine, wordSHA+" ")
	result.Received = strings.TrimPrefix(strings.TrimSpace(theirs), wordSHA+" ")
	if word == wordGet {
		result.Sent, result.Received = result.Received, result.Sent
	}
	if result.Sent != result.Received {
		return result, fmt.Errorf("%s %d octets at %s: the data changed on its way: sent %s, received %s", word, octets, l.remote, result.Sent, result.Received)
	}
	return result, nil
}

// askSource asks a server which source it sees.
func askSource(conn io.Writer, reader *bufio.Reader) (netip.AddrPort, error) {
	if _, err := io.WriteString(conn, "WHO\n"); err != nil {
		return netip.AddrPort{}, fmt.Errorf("ask for the source: %w", err)
	}
	line, err := reader.ReadString('\n')
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("read the source: %w", err)
	}
	source, _, err := parseSource(line)
	return source, err
}

// bulkArguments reads "octets seed".
func bulkArguments(arguments string) (octets int64, seed uint64, err error) {
	if _, err := fmt.Sscanf(arguments, "%d %d", &octets, &seed); err != nil {
		return 0, 0, fmt.Errorf("read %q as octets and seed: %w", arguments, err)
	}
	if octets < 0 {
		return 0, 0, fmt.Errorf("transfer %d octets: less than none", octets)
	}
	return octets, seed, nil
}

// pace is SO_MAX_PACING_RATE, see socket(7).
func pace(conn syscall.Conn, octetsPerSecond string) error {
	rate, err := strconv.Atoi(octetsPerSecond)
	if err != nil {
		return fmt.Errorf("read %q as octets a second: %w", octetsPerSecond, err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	if failed := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, rate)
	}); failed != nil {
		return failed
	}
	return os.NewSyscallError("pace a connection", err)
}

// sendBulk writes the octets of a seed and returns "SHA256 hex" of them. They are
// one block of random ones again and again, each time with its number in front:
// making them anew would take longer than sending them.
func sendBulk(w io.Writer, arguments string) (string, error) {
	octets, seed, err := bulkArguments(arguments)
	if err != nil {
		return "", err
	}
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	random := rand.NewChaCha8(key)
	sum := sha256.New()
	buffer := make([]byte, 256<<10)
	_, _ = random.Read(buffer) // never fails
	for left := octets; left > 0; {
		binary.LittleEndian.PutUint64(buffer, uint64(left))
		chunk := buffer[:min(left, int64(len(buffer)))]
		sum.Write(chunk)
		if _, err := w.Write(chunk); err != nil {
			return "", fmt.Errorf("send, with %d octets left: %w", left, err)
		}
		left -= int64(len(chunk))
	}
	return wordSHA + " " + hex.EncodeToString(sum.Sum(nil)), nil
}

// receiveBulk reads the octets and returns "SHA256 hex" of them.
func receiveBulk(r io.Reader, arguments string) (string, error) {
	octets, _, err := bulkArguments(arguments)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	buffer := make([]byte, 256<<10)
	for left := octets; left > 0; {
		n, err := r.Read(buffer[:min(left, int64(len(buffer)))])
		sum.Write(buffer[:n])
		left -= int64(n)
		if err != nil && left > 0 {
			return "", fmt.Errorf("receive, with %d octets left: %w", left, err)
		}
	}
	return wordSHA + " " + hex.EncodeToString(sum.Sum(nil)), nil
}
