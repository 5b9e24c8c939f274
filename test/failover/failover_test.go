// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"testing"
	"time"

	"vippin/test/lab"
	"vippin/test/traffic/swarm"
)

func TestMain(m *testing.M) {
	if swarm.Worker() {
		return
	}
	os.Exit(lab.Main(m))
}

// measureHere runs one survival case with 20 flows of each protocol.
func measureHere(t *testing.T, arm, fault string) Result {
	t.Helper()
	if err := lab.Root(); err != nil {
		t.Skip(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	p, err := openSurvival(ctx, "harness", Case{
		Kind: survive, Arm: arm, Fault: fault, Firewall: stateful, Family: "ipv4", Age: young, Flows: 20, Adverts: 100,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.close(); err != nil {
			t.Error(err)
		}
	}()
	result, err := p.fail(ctx)
	if err != nil {
		t.Fatalf("%v\n%s", err, p.Describe())
	}
	for proto, s := range result.Survival {
		if s.Flows != 20 || s.Lucky != 0 {
			t.Errorf("%s: %+v, want 20 flows and no luck", proto, s)
		}
	}
	if len(result.Survival) != swarm.Protos {
		t.Errorf("measured %v", result.Survival)
	}
	return result
}

// The harness can count what lives: without a fault everything does.
func TestNothingHappens(t *testing.T) {
	result := measureHere(t, "masquerade", none)
	for proto, s := range result.Survival {
		if s.Survived != s.Flows {
			t.Errorf("%s: %+v survived nothing at all", proto, s)
		}
	}
	if result.ProbesAlive != result.Probes {
		t.Errorf("%d of %d probes live", result.ProbesAlive, result.Probes)
	}
}

// And what does not: masquerade loses every flow, none lives on by luck.
func TestMasqueradeLosesEverything(t *testing.T) {
	result := measureHere(t, "masquerade", hard)
	for proto, s := range result.Survival {
		if s.Survived != 0 {
			t.Errorf("%s: %+v", proto, s)
		}
	}
	if result.ProbesAlive != 0 {
		t.Errorf("%d probes live", result.ProbesAlive)
	}
}

// The stack of today does what it is known for: conntrackd straight into the
// kernel keeps young TCP and UDP flows, and no ICMP, whose translated
// identifier it does not replicate.
func TestDirectKeepsYoungFlows(t *testing.T) {
	result := measureHere(t, "direct", hard)
	if s := result.Survival; s["tcp"].Survived != 20 || s["udp"].Survived != 20 || s["icmp"].Survived != 0 {
		t.Errorf("survived: %+v", s)
	}
	if result.ProbesAlive != result.Probes || result.OutageMs < 100 || result.Held < 60 {
		t.Errorf("probes, outage or copies: %+v", result)
	}
}
