// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// SyncGroup is the name of keepalived's sync group of all instances.
const SyncGroup = "RouterCore"

// Auth is VRRPv2's authentication (RFC 2338 section 5.3.6; RFC 3768 dropped it).
type Auth string

// The kinds that keepalived knows.
const (
	AuthNone Auth = ""
	AuthPass Auth = "PASS"
	AuthAH   Auth = "AH" // adverts inside IP protocol 51
)

// Keepalived are the choices of one router's keepalived; the zero value is
// VRRPv3 with adverts every 100 ms, an IPv4 and an IPv6 instance on each
// segment, all in one sync group.
type Keepalived struct {
	Version      int           // 3 (default) or 2; IPv6 instances are always 3
	Auth         Auth          // with version 2
	Interval     time.Duration // default 100 ms; version 2: whole seconds, default 1 s
	Priority     int           // default 150 on ra, 100 on rb, 50 on rc
	NoPreempt    bool
	Unicast      bool // unicast_peer instead of multicast
	VMAC         bool // VIPs on a macvlan with the virtual MAC; adverts leave there too
	PlainARP     bool // with VMAC: arp_ignore and arp_announce stay as the kernel has them, which does not do
	VMACXmitBase bool // with VMAC: adverts leave from the interface itself
	VIP6Bits     int  // prefix length of the IPv6 VIP; 0 = 128, which keepalived adds as deprecated
	IPv4Only     bool
	NotifyFIFO   string // path, "" = none
	Global       string // more lines for global_defs
	Instance     string // more lines for every instance
	Group        string // more lines for the sync group
	TrackReady   bool   // vippin's ready_file adds 50 to the priority, which is 110 on ra then; start vippin first

	Names map[string]string // what interfaces were renamed to on this router, by segment
}

func (k Keepalived) withDefaults(router string) Keepalived {
	if k.Version == 0 {
		k.Version = 3
	}
	if k.Interval == 0 {
		k.Interval = AdvertInterval
		if k.Version == 2 {
			k.Interval = time.Second
		}
	}
	if k.Priority == 0 {
		k.Priority = map[string]int{"ra": 150, "rb": 100, "rc": 50}[router]
		if k.TrackReady && router == "ra" {
			k.Priority = 110 // and 160 with a weight that makes others 150
		}
	}
	return k
}

// StartKeepalived starts keepalived on a router, or, when it runs there, stops
// it first. It returns before the router is MASTER or BACKUP.
func (l *Lab) StartKeepalived(r *Router, k Keepalived) (*Proc, error) {
	if old := r.Keepalived(); old != nil {
		if err := old.Stop(); err != nil {
			return nil, err
		}
		old.forget()
	}
	if k.VMAC && !k.PlainARP { // keepalived's own care leaves out the IPv6 instances' interfaces
		if err := errors.Join(r.Sysctl("net/ipv4/conf/all/arp_ignore", "1"), r.Sysctl("net/ipv4/conf/all/arp_announce", "2")); err != nil {
			return nil, err
		}
	}
	file, err := l.WriteKeepalived(r, k)
	if err != nil {
		return nil, err
	}
	pids := map[string]string{
		"-p": r.pidFile("parent"), "-r": r.pidFile("vrrp"), "-c": r.pidFile("checkers"), "-b": r.pidFile("bfd"),
	}
	p := &Proc{
		Name: "keepalived", LogFile: filepath.Join(r.Dir, "keepalived.log"), node: r.Node,
		argv: []string{"keepalived", "--dont-fork", "--log-console", "--log-detail", "--no-syslog", "-f", file},
	}
	for option, path := range pids {
		p.argv = append(p.argv, option, path)
	}
	p.prepare = func() error { // as a boot does; a crashed one's files can keep it from starting
		for _, path := range pids {
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("remove the old pid file: %w", err)
			}
		}
		return nil
	}
	if err := p.launch(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	r.keepalived, r.only4 = p, k.IPv4Only
	l.mu.Unlock()
	return p, nil
}

// StartRouters starts the same keepalived on all routers: first on ra, and when
// that is MASTER on the others, which come up as BACKUP.
func (l *Lab) StartRouters(ctx context.Context, k Keepalived) error {
	if _, err := l.StartKeepalived(l.RA, k); err != nil {
		return err
	}
	if err := l.RA.AwaitMaster(ctx); err != nil {
		return err
	}
	for _, r := range l.Routers()[1:] {
		p, err := l.StartKeepalived(r, k)
		if err != nil {
			return err
		}
		if err := p.AwaitLog(ctx, "Entering BACKUP STATE"); err != nil {
			return err
		}
		if err := r.AwaitBackup(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Keepalived is the router's process, nil when none was started. Kill9 on it
// is a crash (the VIPs stay on the interfaces), Stop a graceful end.
func (r *Router) Keepalived() *Proc {
	r.lab.mu.Lock()
	defer r.lab.mu.Unlock()
	return r.keepalived
}

func (r *Router) pidFile(what string) string {
	return filepath.Join(r.Dir, "keepalived-"+what+".pid")
}

// VRRPPid is the id of keepalived's VRRP child, which takes the signals that
// are not for the parent (USR1, and 36 for JSON).
func (r *Router) VRRPPid() (int, error) {
	text, err := os.ReadFile(r.pidFile("vrrp"))
	if err != nil {
		return 0, fmt.Errorf("read keepalived's child of %s: %w", r.Name, err)
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// WriteKeepalived writes a router's keepalived.conf and returns its path; a
// running keepalived reads it again at SIGHUP.
func (l *Lab) WriteKeepalived(r *Router, k Keepalived) (string, error) {
	k = k.withDefaults(r.Name)
	if k.Version == 2 && k.Interval%time.Second != 0 {
		return "", errors.New("write keepalived.conf: VRRPv2 counts in whole seconds; choose such an interval")
	}
	var text, members strings.Builder
	fmt.Fprintf(&text, "global_defs {\n\trouter_id %s\n\tvrrp_version %d\n", r.Name, k.Version)
	if k.NotifyFIFO != "" {
		fmt.Fprintf(&text, "\tvrrp_notify_fifo %s\n", k.NotifyFIFO)
	}
	text.WriteString(k.Global + "}\n")
	if k.TrackReady {
		fmt.Fprintf(&text, "track_file vippin {\n\tfile %q\n\tweight 50\n\tinit_file 0\n}\n", filepath.Join(r.RunDir(), "ready"))
		k.Group += "\ttrack_file {\n\t\tvippin\n\t}\n"
	}
	for _, s := range l.Segments() {
		for _, v6 := range []bool{false, true} {
			if v6 && k.IPv4Only {
				continue
			}
			text.WriteString(l.instance(r, k, s, v6))
			fmt.Fprintf(&members, "\t\t%s\n", instanceName(s, v6))
		}
	}
	fmt.Fprintf(&text, "vrrp_sync_group %s {\n\tgroup {\n%s\t}\n%s}\n", SyncGroup, members.String(), k.Group)
	file := filepath.Join(r.Dir, "keepalived.conf")
	if err := os.WriteFile(file, []byte(text.String()), 0o644); err != nil {
		return "", fmt.Errorf("write keepalived.conf of %s: %w", r.Name, err)
	}
	return file, nil
}

// instanceName is LAN0, LAN0V6, WAN0 …
func instanceName(s Segment, v6 bool) string {
	name := strings.ToUpper(s.Name)
	if v6 {
		name += "V6"
	}
	return name
}

func (l *Lab) instance(r *Router, k Keepalived, s Segment, v6 bool) string {
	var t strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&t, "\t"+format+"\n", args...) }
	fmt.Fprintf(&t, "vrrp_instance %s {\n", instanceName(s, v6))
	line("state BACKUP")
	line("interface %s", cmp.Or(k.Names[s.Name], r.Ifname(s)))
	line("virtual_router_id %d", s.VRID)
	line("priority %d", k.Priority)
	version := k.Version
	if v6 {
		version = 3
	}
	line("version %d", version)
	line("advert_int %g", k.Interval.Seconds())
	if k.NoPreempt {
		line("nopreempt")
	}
	if k.VMAC {
		family := 4
		if v6 {
			family = 6
		}
		line("use_vmac vrrp%d.%d", family, s.VRID)
		if k.VMACXmitBase {
			line("vmac_xmit_base")
		}
	}
	if k.Auth != AuthNone && version == 2 {
		line("authentication {\n\t\tauth_type %s\n\t\tauth_pass vippin\n\t}", k.Auth)
	}
	if k.Unicast {
		own, peer := s.RA, s.RB
		if r == l.RB {
			own, peer = peer, own
		}
		if v6 {
			line("unicast_src_ip %s\n\tunicast_peer {\n\t\t%s\n\t}", own.V6, peer.V6)
		} else {
			line("unicast_src_ip %s\n\tunicast_peer {\n\t\t%s\n\t}", own.V4, peer.V4)
		}
	}
	if v6 {
		line("virtual_ipaddress {\n\t\t%s/64\n\t\t%s/%d\n\t}", s.VIPLL, s.VIP6, cmp.Or(k.VIP6Bits, 128))
	} else {
		line("virtual_ipaddress {\n\t\t%s/%d\n\t}", s.VIP4, s.Bits4)
	}
	t.WriteString(k.Instance + "}\n")
	return t.String()
}
