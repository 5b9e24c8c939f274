// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ftpTimeout is how long either end of an FTP session waits for the other.
const ftpTimeout = 5 * time.Second

// FTPServer is as much of an FTP server (RFC 959, RFC 2428) as a download takes.
// Like a careful one it talks over data connections only to the address that
// the control connection comes from.
type FTPServer struct {
	in       Enter
	files    map[string][]byte
	listener []net.Listener
	sessions sync.WaitGroup

	mu      sync.Mutex
	sources []netip.AddrPort // of control and data connections, in order
}

// ServeFTP serves files inside the namespace on port 21 of some addresses.
func ServeFTP(in Enter, files map[string][]byte, at ...netip.Addr) (*FTPServer, error) {
	s := &FTPServer{in: in, files: files}
	for _, addr := range at {
		l, err := s.listen(netip.AddrPortFrom(addr, 21))
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		s.listener = append(s.listener, l)
		s.sessions.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				s.sessions.Go(func() { s.session(conn) })
			}
		})
	}
	return s, nil
}

func (s *FTPServer) listen(at netip.AddrPort) (l net.Listener, err error) {
	var listen net.ListenConfig
	listen.SetMultipathTCP(false)
	err = s.in(func() (err error) {
		l, err = listen.Listen(context.Background(), "tcp", at.String())
		return err
	})
	return l, err
}

// Close ends the server; sessions under way end by themselves.
func (s *FTPServer) Close() error {
	var errs []error
	for _, l := range s.listener {
		errs = append(errs, l.Close())
	}
	s.sessions.Wait()
	return errors.Join(errs...)
}

// Sources lists from where connections came, or where they led to for active
// data connections.
func (s *FTPServer) Sources() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]netip.AddrPort(nil), s.sources...)
}

func (s *FTPServer) remember(peer net.Addr) netip.Addr {
	source := peer.(*net.TCPAddr).AddrPort()
	source = netip.AddrPortFrom(source.Addr().Unmap(), source.Port())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sources = append(s.sources, source)
	return source.Addr()
}

// ftpSession is one control connection at the server.
type ftpSession struct {
	server  *FTPServer
	conn    net.Conn
	client  netip.Addr
	active  netip.AddrPort // where PORT or EPRT said
	passive net.Listener   // of PASV or EPSV
}

func (s *FTPServer) session(conn net.Conn) {
	defer conn.Close()
	c := &ftpSession{server: s, conn: conn, client: s.remember(conn.RemoteAddr())}
	defer c.reset()
	c.say("220 ready")
	lines := bufio.NewScanner(conn)
	for {
		_ = conn.SetDeadline(time.Now().Add(ftpTimeout))
		if !lines.Scan() {
			return
		}
		verb, argument, _ := strings.Cut(strings.TrimSpace(lines.Text()), " ")
		if verb == "QUIT" {
			c.say("221 bye")
			return
		}
		c.say("%s", c.obey(verb, argument))
	}
}

func (c *ftpSession) say(format string, args ...any) {
	_, _ = fmt.Fprintf(c.conn, format+"\r\n", args...) // the client sees what is missing
}

func (c *ftpSession) reset() {
	if c.passive != nil {
		c.passive.Close()
	}
	c.passive, c.active = nil, netip.AddrPort{}
}

// obey does what one command says and returns the answer.
func (c *ftpSession) obey(verb, argument string) string {
	var err error
	switch verb {
	case "USER":
		return "331 password"
	case "PASS":
		return "230 welcome"
	case "TYPE":
		return "200 binary"
	case "PORT":
		c.reset()
		if c.active, err = parsePort(argument); err != nil {
			return "501 " + err.Error()
		}
		return "200 active"
	case "EPRT":
		c.reset()
		if c.active, err = parseEPRT(argument); err != nil {
			return "501 " + err.Error()
		}
		return "200 active"
	case "PASV", "EPSV":
		return c.listen(verb)
	case "RETR":
		return c.retrieve(argument)
	}
	return "502 " + verb
}

func (c *ftpSession) listen(verb string) string {
	c.reset()
	own := c.conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	var err error
	if c.passive, err = c.server.listen(netip.AddrPortFrom(own, 0)); err != nil {
		return "425 " + err.Error()
	}
	port := c.passive.Addr().(*net.TCPAddr).Port
	if verb == "EPSV" {
		return fmt.Sprintf("229 passive (|||%d|)", port)
	}
	return fmt.Sprintf("227 passive (%s,%d,%d)", strings.ReplaceAll(own.String(), ".", ","), port>>8, port&0xff)
}

func (c *ftpSession) retrieve(name string) string {
	file, ok := c.server.files[name]
	if !ok {
		return "550 no such file"
	}
	c.say("150 here it comes")
	data, err := c.dataConn()
	if err != nil {
		return "425 " + err.Error()
	}
	_ = data.SetDeadline(time.Now().Add(ftpTimeout))
	_, err = data.Write(file)
	if err := errors.Join(err, data.Close()); err != nil {
		return "426 " + err.Error()
	}
	return "226 done"
}

func (c *ftpSession) dataConn() (data net.Conn, err error) {
	switch {
	case c.passive != nil:
		_ = c.passive.(*net.TCPListener).SetDeadline(time.Now().Add(ftpTimeout))
		data, err = c.passive.Accept()
	case c.active.IsValid():
		own := c.conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap() // as the client's firewall expects
		data, err = Dial(context.Background(), c.server.in, "tcp", netip.AddrPortFrom(own, 0), c.active, ftpTimeout)
	default:
		err = errors.New("no PORT or PASV")
	}
	if err != nil {
		return nil, err
	}
	if peer := c.server.remember(data.RemoteAddr()); peer != c.client {
		return nil, errors.Join(fmt.Errorf("control connection from %s, data connection with %s", c.client, peer), data.Close())
	}
	return data, nil
}

// parsePort reads the argument of PORT, or what stands in the answer to PASV:
// h1,h2,h3,h4,p1,p2.
func parsePort(text string) (end netip.AddrPort, err error) {
	fields := strings.Split(text, ",")
	if len(fields) != 6 {
		return end, fmt.Errorf("read the address in %q", text)
	}
	addr, err := netip.ParseAddr(strings.Join(fields[:4], "."))
	high, err1 := strconv.ParseUint(fields[4], 10, 8)
	low, err2 := strconv.ParseUint(fields[5], 10, 8)
	return netip.AddrPortFrom(addr, uint16(high<<8|low)), errors.Join(err, err1, err2)
}

// parseEPRT reads |family|address|port| (RFC 2428 section 2).
func parseEPRT(text string) (end netip.AddrPort, err error) {
	fields := strings.Split(text, "|")
	if len(fields) != 5 {
		return end, fmt.Errorf("read the address in %q", text)
	}
	addr, err := netip.ParseAddr(fields[2])
	port, err1 := strconv.ParseUint(fields[3], 10, 16)
	return netip.AddrPortFrom(addr, uint16(port)), errors.Join(err, err1)
}

// FTPMode is how the data connection is made.
type FTPMode string

// The modes: the command that the client sends.
const (
	FTPPort FTPMode = "PORT" // active, IPv4
	FTPEprt FTPMode = "EPRT" // active
	FTPPasv FTPMode = "PASV" // passive, IPv4
	FTPEpsv FTPMode = "EPSV" // passive
)

// FTPGet downloads a file from a server, as a client inside the namespace.
// Local is the client's own address, which active modes tell the server.
func FTPGet(in Enter, local, server netip.Addr, mode FTPMode, name string) ([]byte, error) {
	conn, err := Dial(context.Background(), in, "tcp", netip.AddrPortFrom(local, 0), netip.AddrPortFrom(server, 21), ftpTimeout)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * ftpTimeout))
	c := &ftpClient{in: in, text: textproto.NewConn(conn), local: local, server: server}
	if _, _, err := c.text.ReadResponse(220); err != nil {
		return nil, err
	}
	for _, login := range []struct {
		command string
		code    int
	}{{"USER anonymous", 331}, {"PASS nobody", 230}, {"TYPE I", 200}} {
		if _, err := c.ask(login.code, "%s", login.command); err != nil {
			return nil, err
		}
	}
	data, err := c.get(mode, name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", mode, err)
	}
	_, err = c.ask(221, "QUIT")
	return data, err
}

type ftpClient struct {
	in            Enter
	text          *textproto.Conn
	local, server netip.Addr
}

// ask sends a command and returns the text of the answer.
func (c *ftpClient) ask(code int, format string, args ...any) (string, error) {
	if err := c.text.PrintfLine(format, args...); err != nil {
		return "", err
	}
	_, message, err := c.text.ReadResponse(code)
	if err != nil {
		err = fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), err)
	}
	return message, err
}

func (c *ftpClient) get(mode FTPMode, name string) ([]byte, error) {
	accept, err := c.prepare(mode)
	if err != nil {
		return nil, err
	}
	if _, err := c.ask(150, "RETR %s", name); err != nil {
		return nil, err
	}
	data, err := accept()
	if err != nil {
		return nil, err
	}
	defer data.Close()
	_ = data.SetDeadline(time.Now().Add(ftpTimeout))
	file, err := io.ReadAll(data)
	if err != nil {
		return nil, err
	}
	_, _, err = c.text.ReadResponse(226)
	return file, err
}

// prepare agrees on a data connection; accept gets it.
func (c *ftpClient) prepare(mode FTPMode) (accept func() (net.Conn, error), err error) {
	if mode == FTPPasv || mode == FTPEpsv {
		return c.connect(mode)
	}
	var l net.Listener
	if err := c.in(func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.local, 0)))
		return err
	}); err != nil {
		return nil, err
	}
	_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(ftpTimeout))
	port := l.Addr().(*net.TCPAddr).Port
	if mode == FTPPort {
		_, err = c.ask(200, "PORT %s,%d,%d", strings.ReplaceAll(c.local.String(), ".", ","), port>>8, port&0xff)
	} else {
		family := 2
		if c.local.Is4() {
			family = 1
		}
		_, err = c.ask(200, "EPRT |%d|%s|%d|", family, c.local, port)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return func() (net.Conn, error) {
		defer l.Close()
		return l.Accept()
	}, nil
}

// connect asks where the server listens, and connects.
func (c *ftpClient) connect(mode FTPMode) (accept func() (net.Conn, error), err error) {
	code := 227
	if mode == FTPEpsv {
		code = 229
	}
	answer, err := c.ask(code, "%s", mode)
	if err != nil {
		return nil, err
	}
	_, inside, _ := strings.Cut(answer, "(")
	inside, _, _ = strings.Cut(inside, ")")
	var to netip.AddrPort
	if mode == FTPPasv {
		to, err = parsePort(inside)
	} else {
		var port uint64
		port, err = strconv.ParseUint(strings.Trim(inside, "|"), 10, 16)
		to = netip.AddrPortFrom(c.server, uint16(port))
	}
	if err != nil {
		return nil, err
	}
	data, err := Dial(context.Background(), c.in, "tcp", netip.AddrPortFrom(c.local, 0), to, ftpTimeout)
	return func() (net.Conn, error) { return data, nil }, err
}
