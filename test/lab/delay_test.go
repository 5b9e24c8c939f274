// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"net/netip"
	"testing"
	"time"

	"vippin/test/traffic"
)

// What comes in by a delayed interface comes that much later, in both families;
// without the delay it does not have to.
func TestDelay(t *testing.T) {
	t.Parallel()
	l := ForTest(t, "delay", Options{Hosts: 1, SingleRouter: true})
	serve(t, l)
	ctx := testContext(t)
	ask := func(to netip.Addr) time.Duration {
		t.Helper()
		start := time.Now()
		if _, err := traffic.Ask(ctx, l.Hosts[0].Do, "udp", netip.AddrPort{}, Port(to, testPort), defaultTimeout); err != nil {
			t.Fatal(err)
		}
		return time.Since(start)
	}
	ends := []netip.Addr{ServerWAN.V4, ServerWAN.V6}
	for _, to := range ends {
		ask(to) // neighbours
	}
	const long = 100 * time.Millisecond
	d, err := l.Server.Delay(ctx, "eth0", long)
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range ends {
		if took := ask(to); took < long {
			t.Errorf("%v answers after %s, sooner than %s", to, took, long)
		}
	}
	d.Set(0)
	for _, to := range ends {
		ask(to)
	}
	if err := d.End(); err != nil {
		t.Fatal(err)
	}
	for _, to := range ends {
		ask(to)
	}
}
