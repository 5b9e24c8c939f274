// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// firewall is nf_tables' rules as they are, down to the attributes of each
// expression. (The nftables library leaves out expressions that it does not know;
// here they are what counts.)
type firewall struct {
	chains map[chainKey]*firewallChain
	order  []*firewallChain
	sets   map[chainKey]*firewallSet
}

type firewallChain struct {
	chainKey
	kind     string // of a base chain: filter, nat, route
	hook     int    // -1: not a base chain
	priority int32  // of a base chain
	rules    [][]firewallExpr
}

type firewallExpr struct {
	name string
	data []byte // attributes
}

type firewallSet struct {
	chainKey
	flags    uint32
	keyLen   uint32 // octets
	verdicts bool   // a map of verdicts
	judges   bool   // by more than the elements: each has a quota or the like
	read     bool   // elements are those that it has
	others   bool   // one of them is for all keys that have none
	elements []firewallElement
}

type firewallElement struct {
	key     []byte
	verdict firewallVerdict
}

type firewallVerdict struct {
	code  int32 // NF_* or NFT_*
	chain string
}

// firewallFamilies are those whose rules a forwarded IP packet may meet.
var firewallFamilies = []nftables.TableFamily{
	nftables.TableFamilyINet, nftables.TableFamilyIPv4, nftables.TableFamilyIPv6, nftables.TableFamilyNetdev, nftables.TableFamilyBridge,
}

// firewallTries is how often rules are read that change meanwhile.
const firewallTries = 3

// readFirewall reads the rules of the network namespace of the calling thread.
func readFirewall() (*firewall, error) {
	for range firewallTries {
		before, err := rulesetGeneration()
		if err != nil {
			return nil, err
		}
		w := &firewall{chains: make(map[chainKey]*firewallChain), sets: make(map[chainKey]*firewallSet)}
		for _, family := range firewallFamilies {
			if err := w.read(family); err != nil {
				return nil, err
			}
		}
		for _, set := range w.sets {
			if err := set.readElements(); err != nil {
				return nil, err
			}
		}
		after, err := rulesetGeneration()
		if err != nil || before == after {
			return w, err
		}
	}
	return nil, fmt.Errorf("read the firewall: its rules have changed %d times meanwhile", firewallTries)
}

func (w *firewall) read(family nftables.TableFamily) error {
	for _, dump := range []struct {
		request uint16
		read    func(nftables.TableFamily, *mdnetlink.AttributeDecoder)
	}{{unix.NFT_MSG_GETCHAIN, w.addChain}, {unix.NFT_MSG_GETSET, w.addSet}, {unix.NFT_MSG_GETRULE, w.addRule}} {
		err := askTables(dump.request, mdnetlink.Dump, byte(family), nil, func(a *mdnetlink.AttributeDecoder) { dump.read(family, a) })
		if err != nil {
			return fmt.Errorf("read the firewall: %w", err)
		}
	}
	return nil
}

func (w *firewall) addChain(family nftables.TableFamily, a *mdnetlink.AttributeDecoder) {
	chain := &firewallChain{chainKey: chainKey{family: family}, hook: -1}
	for a.Next() {
		switch a.Type() {
		case unix.NFTA_CHAIN_TABLE:
			chain.table = a.String()
		case unix.NFTA_CHAIN_NAME:
			chain.name = a.String()
		case unix.NFTA_CHAIN_TYPE:
			chain.kind = a.String()
		case unix.NFTA_CHAIN_HOOK:
			a.Nested(func(hook *mdnetlink.AttributeDecoder) error {
				for hook.Next() {
					switch hook.Type() {
					case unix.NFTA_HOOK_HOOKNUM:
						chain.hook = int(hook.Uint32())
					case unix.NFTA_HOOK_PRIORITY:
						chain.priority = hook.Int32()
					}
				}
				return nil
			})
		}
	}
	w.chains[chain.chainKey] = chain
	w.order = append(w.order, chain)
}

// NFTA_SET_EXPR, NFTA_SET_EXPRESSIONS and NFT_DATA_VERDICT,
// include/uapi/linux/netfilter/nf_tables.h.
const (
	setExpr        = 17
	setExpressions = 18
	setVerdicts    = 0xffffff00
)

func (w *firewall) addSet(family nftables.TableFamily, a *mdnetlink.AttributeDecoder) {
	set := &firewallSet{chainKey: chainKey{family: family}}
	for a.Next() {
		switch a.Type() {
		case unix.NFTA_SET_TABLE:
			set.table = a.String()
		case unix.NFTA_SET_NAME:
			set.name = a.String()
		case unix.NFTA_SET_FLAGS:
			set.flags = a.Uint32()
		case unix.NFTA_SET_KEY_LEN:
			set.keyLen = a.Uint32()
		case unix.NFTA_SET_DATA_TYPE:
			set.verdicts = a.Uint32() == setVerdicts
		case setExpr:
			set.judges = set.judges || readExpr(a).name != "counter"
		case setExpressions:
			a.Nested(func(list *mdnetlink.AttributeDecoder) error {
				for list.Next() {
					set.judges = set.judges || readExpr(list).name != "counter"
				}
				return nil
			})
		}
	}
	w.sets[set.chainKey] = set
}

func (w *firewall) addRule(family nftables.TableFamily, a *mdnetlink.AttributeDecoder) {
	key := chainKey{family: family}
	var exprs []firewallExpr
	for a.Next() {
		switch a.Type() {
		case unix.NFTA_RULE_TABLE:
			key.table = a.String()
		case unix.NFTA_RULE_CHAIN:
			key.name = a.String()
		case unix.NFTA_RULE_EXPRESSIONS:
			a.Nested(func(list *mdnetlink.AttributeDecoder) error {
				for list.Next() {
					exprs = append(exprs, readExpr(list))
				}
				return nil
			})
		}
	}
	if chain := w.chains[key]; chain != nil {
		chain.rules = append(chain.rules, exprs)
	}
}

func readExpr(list *mdnetlink.AttributeDecoder) (e firewallExpr) {
	list.Nested(func(a *mdnetlink.AttributeDecoder) error {
		for a.Next() {
			switch a.Type() {
			case unix.NFTA_EXPR_NAME:
				e.name = a.String()
			case unix.NFTA_EXPR_DATA:
				e.data = a.Bytes()
			}
		}
		return nil
	})
	return e
}

// readElements reads the elements of a map of verdicts, which leads to chains, and of
// a set without a name, which is a part of a rule.
func (s *firewallSet) readElements() error {
	if !s.verdicts && s.flags&unix.NFT_SET_ANONYMOUS == 0 {
		return nil
	}
	request, err := mdnetlink.MarshalAttributes([]mdnetlink.Attribute{
		{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: append([]byte(s.table), 0)},
		{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: append([]byte(s.name), 0)},
	})
	if err != nil {
		return err
	}
	s.read = true
	err = askTables(unix.NFT_MSG_GETSETELEM, mdnetlink.Dump, byte(s.family), request, func(a *mdnetlink.AttributeDecoder) {
		for a.Next() {
			if a.Type() == unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				a.Nested(func(list *mdnetlink.AttributeDecoder) error {
					for list.Next() {
						e := readElement(list)
						s.others = s.others || len(e.key) == 0
						s.elements = append(s.elements, e)
					}
					return nil
				})
			}
		}
	})
	if err != nil {
		return fmt.Errorf("read set %s of the firewall: %w", s.name, err)
	}
	return nil
}

// changes tells whether elements come and go without an event.
func (s *firewallSet) changes() bool { return s.flags&(unix.NFT_SET_TIMEOUT|unix.NFT_SET_EVAL) != 0 }

// exact tells whether a key finds the element with that key, or none.
func (s *firewallSet) exact() bool {
	return s.read && !s.others && !s.changes() && s.flags&unix.NFT_SET_INTERVAL == 0
}

func readElement(list *mdnetlink.AttributeDecoder) (e firewallElement) {
	list.Nested(func(a *mdnetlink.AttributeDecoder) error {
		for a.Next() {
			switch a.Type() {
			case unix.NFTA_SET_ELEM_KEY:
				e.key, _ = readData(a.Bytes())
			case unix.NFTA_SET_ELEM_DATA:
				_, e.verdict = readData(a.Bytes())
			}
		}
		return nil
	})
	return e
}

// readData reads NFTA_DATA_*: a value, or a verdict.
func readData(data []byte) (value []byte, verdict firewallVerdict) {
	verdict.code = unix.NFT_CONTINUE
	for kind, data := range routeAttributes(data) {
		switch kind {
		case unix.NFTA_DATA_VALUE:
			value = data
		case unix.NFTA_DATA_VERDICT:
			for kind, data := range routeAttributes(data) {
				switch {
				case kind == unix.NFTA_VERDICT_CODE && len(data) == 4:
					verdict.code = int32(binary.BigEndian.Uint32(data))
				case kind == unix.NFTA_VERDICT_CHAIN:
					verdict.chain = unix.ByteSliceToString(data)
				}
			}
		}
	}
	return value, verdict
}

// uint32 is an attribute of the expression; 0 where it is missing, as is ok.
func (e *firewallExpr) uint32(kind uint16) (value uint32, ok bool) {
	data, ok := e.bytes(kind)
	if !ok || len(data) != 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(data), true
}

func (e *firewallExpr) bytes(kind uint16) (value []byte, ok bool) {
	for k, data := range routeAttributes(e.data) {
		if k == kind {
			return data, true
		}
	}
	return nil, false
}

func (e *firewallExpr) text(kind uint16) string {
	data, _ := e.bytes(kind)
	return unix.ByteSliceToString(data)
}
