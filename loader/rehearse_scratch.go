// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// inScratch runs do in a new network namespace in which conntrack translates, and
// from which nothing can go anywhere. It has no name: it is gone when its thread has
// left and the sockets that do opened are closed.
func inScratch(do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("open this network namespace: %w", err)
			return
		}
		defer func() { _ = home.Close() }()
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("make a network namespace: %w", err)
			return
		}
		if err = furnish(); err == nil {
			err = do()
		}
		if back := netns.Set(home); back != nil {
			// The thread stays locked, and dies with this goroutine.
			err = errors.Join(err, fmt.Errorf("return from a network namespace: %w", back))
		} else {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// furnish gives the namespace of the calling thread what NAT needs. What forwarding
// is set to is inherited, and must be off.
func furnish() error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	for _, name := range []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"} {
		value, err := os.ReadFile(name)
		if err == nil && string(value) != "0\n" {
			err = os.WriteFile(name, []byte("0"), 0)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without IPv6
			return fmt.Errorf("switch forwarding off: %w", err)
		}
	}
	return masqueradeChains()
}

// masqueradeChains makes what conntrack and NAT are hooked in for. Without rules
// that need them, the kernel leaves them out.
func masqueradeChains() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nf_tables: %w", err)
	}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		table := conn.AddTable(&nftables.Table{Family: family, Name: "rehearsal"})
		for name, hook := range map[string]*nftables.ChainHook{
			"out": nftables.ChainHookPostrouting, "in": nftables.ChainHookPrerouting,
		} {
			priority := nftables.ChainPriorityNATSource
			if name == "in" {
				priority = nftables.ChainPriorityNATDest
			}
			chain := conn.AddChain(&nftables.Chain{Name: name, Table: table, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: priority})
			if name == "out" {
				conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Masq{}}})
			}
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("make NAT chains (nf_tables with nft_chain_nat and nft_masq is needed): %w", err)
	}
	return nil
}
