// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The table of sync.no_rst. The VIPs are set elements that the kernel removes when
// their time is over, be the daemon alive or not.
const (
	quietTable    = "vippin-quiet" // of family inet
	quietHook     = "input"
	quietSegments = "segments" // TCP to a VIP that is held
	quietCount    = "held"
	quietPriority = -10 // before the firewall, after conntrack
)

// quietVIPs are the VIPs of one family that are held, until when.
type quietVIPs struct {
	name    string
	nfproto byte
	offset  uint32 // of the destination in the IP header
	size    uint32
	key     nftables.SetDatatype
}

var quietSets = []quietVIPs{
	{"vips4", unix.NFPROTO_IPV4, 16, 4, nftables.TypeIPAddr},
	{"vips6", unix.NFPROTO_IPV6, 24, 16, nftables.TypeIP6Addr},
}

// HoldResets keeps this router from answering TCP segments to the VIPs by RST
// when they belong to no connection it knows: they are dropped and counted for
// so long, then the kernel ends it by itself. A connection that begins is let
// through. Called again, the time of these VIPs begins anew, others keep theirs,
// and the count goes on. It is of the network namespace of the calling thread.
func HoldResets(vips []netip.Addr, d time.Duration) error {
	held, err := readQuiet()
	if err != nil {
		return err
	}
	for _, vip := range vips {
		held.left[vip.Unmap()] = d
	}
	return held.replace()
}

// EndHoldResets ends it at once, for all VIPs, and the count.
func EndHoldResets() error { return removeTables(quietTable) }

// ResetsHeld is how many segments were dropped since HoldResets was called first.
func ResetsHeld() (uint64, error) {
	held, err := readQuiet()
	return held.count, err
}

// quiet is what the kernel has of the table, or is to have.
type quiet struct {
	count uint64
	left  map[netip.Addr]time.Duration // by VIP
}

// readQuiet reads the table; one that is not there is empty.
func readQuiet() (quiet, error) {
	held := quiet{left: make(map[netip.Addr]time.Duration)}
	conn, err := dialTables()
	if err != nil {
		return held, fmt.Errorf("read table inet %s: %w", quietTable, err)
	}
	defer func() { _ = conn.CloseLasting() }()
	there, err := tablesNamed(conn, quietTable)
	if err == nil && len(there) > 0 {
		err = held.read(conn)
	}
	if err != nil {
		return held, fmt.Errorf("read table inet %s: %w", quietTable, err)
	}
	return held, nil
}

func (q *quiet) read(conn *nftables.Conn) error {
	table := &nftables.Table{Name: quietTable, Family: nftables.TableFamilyINet}
	counter, err := conn.GetObject(&nftables.CounterObj{Table: table, Name: quietCount})
	if err != nil {
		return err
	}
	if counter, ok := counter.(*nftables.CounterObj); ok {
		q.count = counter.Packets
	}
	for _, set := range quietSets {
		elements, err := conn.GetSetElements(&nftables.Set{Table: table, Name: set.name})
		if err != nil {
			return err
		}
		for _, element := range elements {
			if vip, ok := netip.AddrFromSlice(element.Key); ok && element.Expires >= time.Millisecond {
				q.left[vip] = element.Expires
			}
		}
	}
	return nil
}

// replace puts the table in the place of the one there, in one step.
func (q *quiet) replace() error {
	var failed error
	err := editTables(quietTable, func(conn *nftables.Conn, there []*nftables.Table) {
		for _, table := range there {
			conn.DelTable(table)
		}
		table := conn.AddTable(&nftables.Table{Name: quietTable, Family: nftables.TableFamilyINet})
		conn.AddObj(&nftables.CounterObj{Table: table, Name: quietCount, Packets: q.count})
		segments := conn.AddChain(&nftables.Chain{Name: quietSegments, Table: table})
		hook := conn.AddChain(&nftables.Chain{
			Name: quietHook, Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityRef(quietPriority),
		})
		for _, set := range quietSets {
			to := &nftables.Set{Table: table, Name: set.name, KeyType: set.key, HasTimeout: true}
			failed = errors.Join(failed, conn.AddSet(to, q.elements(set)))
			addRule(conn, hook, markRule{"TCP to a virtual IP while the peer's flows are missing", set.match(to)})
		}
		for _, rule := range quietRules() {
			addRule(conn, segments, rule)
		}
	})
	if err := errors.Join(failed, err); err != nil {
		return fmt.Errorf("make table inet %s: %w", quietTable, err)
	}
	return nil
}

// elements are the VIPs of a set's family that have time left.
func (q *quiet) elements(set quietVIPs) (list []nftables.SetElement) {
	for vip, left := range q.left {
		if key := vip.AsSlice(); len(key) == int(set.size) && left >= time.Millisecond {
			list = append(list, nftables.SetElement{Key: key, Timeout: left})
		}
	}
	return list
}

// match leads TCP segments to one of the set's VIPs to the chain of segments.
func (v quietVIPs) match(set *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{v.nfproto}},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: v.offset, Len: v.size},
		&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID},
		&expr.Verdict{Kind: expr.VerdictJump, Chain: quietSegments},
	}
}

// TCP's flags, RFC 9293 section 3.1, the octet at 13.
const (
	tcpSYN byte = 0x02
	tcpRST byte = 0x04
	tcpACK byte = 0x10
)

// conntrack's states of a packet as bits of the expression ct,
// NF_CT_STATE_BIT and NF_CT_STATE_INVALID_BIT.
const (
	stateInvalid uint32 = 1 << 0
	stateNew     uint32 = 1 << 3
)

// quietRules say which segments are dropped. One that conntrack was told not to
// track is no flow of ours: its rules would not have translated it either.
func quietRules() []markRule {
	flags := func(mask, value byte) []expr.Any {
		return []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{mask}, Xor: []byte{0}},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{value}},
			&expr.Verdict{Kind: expr.VerdictReturn},
		}
	}
	unknown := []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		bitwise32(stateInvalid|stateNew, 0),
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: native32(0)},
		&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: quietCount},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
	return []markRule{
		{"a RST is never answered", flags(tcpRST, tcpRST)},
		{"a connection begins", flags(tcpSYN|tcpACK, tcpSYN)},
		{"of no connection that is known: else the kernel answers by RST", unknown},
	}
}
