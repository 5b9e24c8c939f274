// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Conntrackd are the choices of one router's conntrackd: FTFW mode by UDP over
// the sync link (AddSyncLink first). Else it is set up as its manual says, with
// buffers and tables large enough for 250,000 flows.
type Conntrackd struct {
	Direct  bool // DisableExternalCache: into the kernel's table at once, nothing to commit
	Shorten bool // the script has "conntrackd -t", as the one in its examples
}

// conntrackdConfig takes the folder, our and the peer's address, the Sync
// options and the addresses whose own connections are not replicated.
const conntrackdConfig = `Sync {
	Mode FTFW {
		%[4]s
	}
	UDP {
		IPv4_address %[2]s
		IPv4_Destination_Address %[3]s
		Port 3780
		Interface ` + SyncLink + `
		SndSocketBuffer 16777216
		RcvSocketBuffer 16777216
		Checksum on
	}
}
General {
	HashSize 65536
	HashLimit 524288
	LogFile %[1]s/conntrackd-events.log
	LockFile %[1]s/conntrackd.lock
	UNIX {
		Path %[1]s/conntrackd.ctl
	}
	NetlinkBufferSize 16777216
	NetlinkBufferSizeMaxGrowth 67108864
	Filter From Userspace {
		Address Ignore {
			%[5]s
		}
	}
}
`

// conntrackdScript is primary-backup.sh of conntrackd's examples without the
// words to the log: what keepalived calls with primary, backup or fault.
const conntrackdScript = `#!/bin/sh
ct() { conntrackd -C %[1]s/conntrackd.conf "$@"; }
exec >>%[1]s/conntrackd-script.log 2>&1
echo "$1"
case "$1" in
primary) ct -c; ct -f; ct -R; ct -B ;;
backup) ct -s >/dev/null; %[2]s ct -n ;;
fault) %[2]s : ;;
esac
exit 0
`

// StartConntrackd starts conntrackd on a router and writes the script that
// NotifyConntrackd has keepalived call.
func (l *Lab) StartConntrackd(ctx context.Context, r *Router, c Conntrackd) (*Proc, error) {
	peer := l.RA
	if r == l.RA {
		peer = l.RB
	}
	mode, shorten := "", ""
	if c.Direct {
		mode = "DisableExternalCache On"
	}
	if c.Shorten {
		shorten = "ct -t;"
	}
	config := fmt.Sprintf(conntrackdConfig, r.Dir, r.SyncAddr(), peer.SyncAddr(), mode, l.conntrackdIgnores())
	if err := os.WriteFile(r.conntrackdFile("conf"), []byte(config), 0o644); err != nil {
		return nil, fmt.Errorf("write conntrackd.conf of %s: %w", r.Name, err)
	}
	script := fmt.Sprintf(conntrackdScript, r.Dir, shorten)
	if err := os.WriteFile(r.conntrackdFile("sh"), []byte(script), 0o755); err != nil {
		return nil, fmt.Errorf("write conntrackd's script of %s: %w", r.Name, err)
	}
	p := &Proc{
		Name: "conntrackd", LogFile: filepath.Join(r.Dir, "conntrackd.log"), node: r.Node,
		argv: []string{"conntrackd", "-C", r.conntrackdFile("conf")},
	}
	p.prepare = func() error { // as a boot does; a killed one's lock keeps it from starting
		if err := os.Remove(r.conntrackdFile("lock")); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove the old lock: %w", err)
		}
		return nil
	}
	if err := p.launch(); err != nil {
		return nil, err
	}
	return p, p.await(ctx, "an answer to conntrackd -s", func() (bool, error) {
		_, err := r.Conntrackd(ctx, "-s")
		return err == nil, nil
	})
}

// conntrackdIgnores are the addresses of both routers, and the VIPs.
func (l *Lab) conntrackdIgnores() string {
	lines := []string{"IPv4_address 127.0.0.1", "IPv6_address ::1"}
	for _, addr := range []any{SyncRA, SyncRB} {
		lines = append(lines, fmt.Sprintf("IPv4_address %s", addr))
	}
	for _, s := range l.Segments() {
		for _, e := range []Ends{s.RA, s.RB, {V4: s.VIP4, V6: s.VIP6}} {
			lines = append(lines, fmt.Sprintf("IPv4_address %s", e.V4), fmt.Sprintf("IPv6_address %s", e.V6))
		}
	}
	return strings.Join(lines, "\n\t\t\t")
}

func (r *Router) conntrackdFile(suffix string) string {
	return filepath.Join(r.Dir, "conntrackd."+suffix)
}

// Conntrackd asks the router's conntrackd by its command line, such as "-s" for
// statistics or "-e" for the external cache.
func (r *Router) Conntrackd(ctx context.Context, args ...string) (string, error) {
	return r.Run(ctx, "conntrackd", append([]string{"-C", r.conntrackdFile("conf")}, args...)...)
}

// ConntrackdLog is what the router's conntrackd has told of commits and faults.
func (r *Router) ConntrackdLog() (string, error) {
	text, err := os.ReadFile(filepath.Join(r.Dir, "conntrackd-events.log"))
	if err != nil {
		return "", fmt.Errorf("read conntrackd's log of %s: %w", r.Name, err)
	}
	return string(text), nil
}

// NotifyConntrackd are the lines of keepalived's sync group that have it call
// the router's conntrackd script.
func (r *Router) NotifyConntrackd() string {
	script := r.conntrackdFile("sh")
	return fmt.Sprintf("\tnotify_master \"%[1]s primary\"\n\tnotify_backup \"%[1]s backup\"\n\tnotify_fault \"%[1]s fault\"\n", script)
}
