// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"context"
	"net"
	"testing"
	"time"

	"vippin/policy"
)

// TestAdverts: a VRRP packet that leaves a watched interface reaches user space,
// and reading ends with its context.
func TestAdverts(t *testing.T) {
	ns := enterNamespace(t)
	ifindex := addVeth(t, "wan0", "wan1")
	addAddr(t, up(t, "wan0"), "198.51.100.3/24")
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	mustApply(t, d, policy.Plan{Interfaces: []policy.PlanInterface{{Index: ifindex, Name: "wan0", HasL2: true}}})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	adverts, done := make(chan policy.AdvertSeen, 100), make(chan error, 1)
	go func() {
		done <- d.Adverts(ctx, func(advert policy.AdvertSeen) error {
			if advert.Ifindex == ifindex {
				adverts <- advert
			}
			return nil
		})
	}()
	payload := []byte{0x31, 10, 100, 1, 0, 100, 0, 0, 198, 51, 100, 2} // version 3, checksum wrong
	before := monotonic()
	err := inNamespace(ns, func() error {
		conn, err := net.ListenPacket("ip4:112", "198.51.100.3")
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		_, err = conn.WriteTo(payload, &net.IPAddr{IP: net.IPv4(198, 51, 100, 255)})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var got policy.AdvertSeen
	select {
	case got = <-adverts:
	case <-time.After(patience):
		t.Fatal("no advert came")
	}
	if got.Direction != policy.Out || got.Src.String() != "198.51.100.3" || !bytes.Equal(got.Payload, payload) ||
		got.Reason == policy.AdvertValid || got.Time < before || got.Time > before+patience {
		t.Errorf("advert %+v", got)
	}
	counters, err := d.VRRPCounters()
	if err != nil || counters[got.Reason.String()] == 0 {
		t.Errorf("counters %v, %v", counters, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("adverts ended with %v", err)
	}
}
