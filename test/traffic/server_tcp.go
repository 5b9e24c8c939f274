// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"bufio"
	"io"
	"net"
	"net/netip"
	"strings"
)

func (s *Server) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.ctx.Err() != nil {
			s.mu.Unlock()
			conn.Close()
			return
		}
		s.conns[conn] = struct{}{}
		s.mu.Unlock()
		s.tasks.Go(func() {
			s.serveConn(conn)
			conn.Close()
			s.mu.Lock()
			delete(s.conns, conn)
			s.mu.Unlock()
		})
	}
}

// serveConn answers one connection's requests until it ends; what goes wrong
// shows at the client.
func (s *Server) serveConn(conn net.Conn) {
	source := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
	source = netip.AddrPortFrom(source.Addr().Unmap(), source.Port())
	reader := bufio.NewReaderSize(conn, 1024)
	for {
		line, err := reader.ReadString('\n')
		if err != nil {
			return
		}
		var reply string
		switch word, rest, _ := strings.Cut(strings.TrimSpace(line), " "); word {
		case wordPut:
			reply, err = receiveBulk(reader, rest)
		case wordGet:
			reply, err = sendBulk(conn, rest)
		case wordPace:
			err = pace(conn.(*net.TCPConn), rest)
		default:
			reply = s.answer("tcp", source, line)
		}
		if err != nil {
			return
		}
		if reply == "" {
			continue
		}
		if _, err := io.WriteString(conn, reply+"\n"); err != nil {
			return
		}
	}
}
