// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"vippin/bpf"
	"vippin/policy"
)

// An older vippin knew neither what is held nor passages: it is taken over with
// its mappings, which go on as they are.
func TestLoadOverOlder(t *testing.T) {
	enterNamespace(t)
	opts := Options{BPFFS: testBPFFS(t)}
	first := mustLoad(t, opts)
	key, end := testMapping(t, first, 40000)
	for _, name := range []string{bpf.DataplaneMapHold, bpf.DataplaneMapPassages} {
		if err := os.Remove(filepath.Join(opts.BPFFS, name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(opts.BPFFS); err == nil {
		t.Error("opened what lacks maps")
	} else {
		contains(t, err.Error(), "another version is loaded")
	}
	second := mustLoad(t, opts)
	var got publicEnd
	if err := second.maps.ByLocal.Lookup(key, &got); err != nil || got != end {
		t.Errorf("mapping after takeover: %+v, %v", got, err)
	}
	if err := second.acknowledge([]flowKey{publicKey(key, &end)}, mappingAcked); err != nil {
		t.Error(err)
	}
	opened, err := Open(opts.BPFFS)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	_ = opened.Close()
}

// A daemon that was killed leaves nothing that waits for it.
func TestLoadHoldsNothing(t *testing.T) {
	enterNamespace(t)
	opts := Options{BPFFS: testBPFFS(t)}
	first := mustLoad(t, opts)
	if err := first.hold(bpf.DataplaneHold{SinceNs: 1, Mark: 2, Mask: 3}); err != nil {
		t.Fatal(err)
	}
	var got bpf.DataplaneHold
	if err := mustLoad(t, opts).maps.Hold.Lookup(uint32(0), &got); err != nil || got != (bpf.DataplaneHold{}) {
		t.Errorf("holds %+v, %v", got, err)
	}
}

// More mappings than the programs take at once, with one that is gone.
func TestAcknowledgeMappings(t *testing.T) {
	enterNamespace(t)
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	var keys []flowKey
	for i := range 2*acknowledgeMax + 1 {
		key, end := testMapping(t, d, uint16(20000+i))
		keys = append(keys, publicKey(key, &end))
	}
	gone := keys[3]
	gone.SelfPort = swapPort(9)
	keys[3] = gone
	if err := d.acknowledge(keys, mappingAcked); err != nil {
		t.Fatal(err)
	}
	left := 0
	err := scanMap(d.maps.ByPublic, func(_ flowKey, end localEnd) bool {
		if end.Flags != mappingAcked {
			left++
		}
		if end.BornNs != 5 {
			t.Errorf("born at %d", end.BornNs)
		}
		return true
	})
	if err != nil || left != 1 {
		t.Errorf("%d are not acknowledged, want 1; %v", left, err)
	}
	if err := d.acknowledge(nil, mappingAcked); err != nil {
		t.Errorf("none: %v", err)
	}
}

// Becoming MASTER, and nothing else, makes every flow take the long way once.
func TestRoleBeginsEpoch(t *testing.T) {
	enterNamespace(t)
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	epoch := func() (n uint64) {
		if err := d.maps.Epoch.Lookup(uint32(0), &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for _, step := range []struct {
		role policy.Role
		want bool
	}{
		{policy.RoleBackup, false}, {policy.RoleMaster, true}, {policy.RoleMaster, false}, {policy.RoleBackup, false},
		{policy.RoleMaster, true}, {policy.RoleFault, false},
	} {
		before := epoch()
		if err := d.SetRole(1, step.role, false); err != nil {
			t.Fatal(err)
		}
		if got := epoch() != before; got != step.want {
			t.Errorf("%v: a new epoch %v, want %v", step.role, got, step.want)
		}
	}
}

// A pin's first packets are told, and forgotten with the pin.
func TestPassagesOfPin(t *testing.T) {
	enterNamespace(t)
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	index := addVeth(t, "wan0", "peer")
	mustApply(t, d, onePin(index, "wan0", true))
	if err := d.maps.Passages.Put(uint32(1), bpf.DataplanePassage{OutNs: 5, InNs: 7}); err != nil {
		t.Fatal(err)
	}
	if out, in, err := d.Passages(1); out != 5 || in != 7 || err != nil {
		t.Errorf("passages %v, %v, %v", out, in, err)
	}
	if _, _, err := d.Passages(2); err == nil {
		t.Error("there is no pin 2")
	}
	mustApply(t, d, policy.Plan{})
	mustApply(t, d, onePin(index, "wan0", true))
	if out, in, err := d.Passages(1); out != 0 || in != 0 || err != nil {
		t.Errorf("passages of the next pin %v, %v, %v", out, in, err)
	}
}

// What a peer told of is never held, nor what was put back.
func TestInstalledDoesNotWait(t *testing.T) {
	l := newReplicaLab(t, masqueradeWAN)
	flow := policy.Flow{
		FlowKey: policy.FlowKey{Src: end("192.168.1.10:5000"), Dst: end("198.51.100.9:7777"), Proto: 17},
		From:    end("198.51.100.9:7777"), To: end(vip + ":5000"), Group: "core",
		Pin: policy.PinName{VLAN: policy.VLAN{Outer: 2}, VIP: addrs(vip)[0]},
	}
	flags := func() bpf.DataplaneMappingFlags {
		keys := l.replica.publicKeys([]policy.Flow{flow})
		var got localEnd
		if len(keys) != 1 {
			t.Fatalf("%d keys", len(keys))
		}
		if err := l.d.maps.ByPublic.Lookup(keys[0], &got); err != nil {
			t.Fatal(err)
		}
		return got.Flags
	}
	if outcomes, err := l.replica.Install([]Installation{{Flow: &flow}}); err != nil || outcomes[0] != Installed {
		t.Fatalf("install: %v, %v", outcomes, err)
	}
	if got := flags(); got != mappingNative|mappingAcked {
		t.Errorf("installed: flags %d", got)
	}
	flow.Src, flow.To = end("192.168.1.10:5001"), end(vip+":5001")
	if outcomes, err := l.replica.Restore([]policy.Flow{flow}); err != nil || outcomes[0] != Installed {
		t.Fatalf("restore: %v, %v", outcomes, err)
	}
	if got := flags(); got != mappingNative|mappingReleased {
		t.Errorf("restored: flags %d", got)
	}
}

// SetPrompt shortens the first look for a mapping, and the gathering of events.
func TestPromptWaits(t *testing.T) {
	f := &follower{r: &Replica{}, reader: &flowReader{local: &replicaEnd{}}, waits: newWaits(), sooner: make(chan struct{}, 1)}
	for _, c := range []struct {
		prompt bool
		want   time.Duration
	}{{false, time.Millisecond}, {true, 200 * time.Microsecond}} {
		f.r.prompt.Store(c.prompt)
		f.reader.key.SelfPort++
		before := Monotonic()
		f.wait(nil, true)
		last := f.waits.flows[f.reader.key]
		at := f.waits.queues[last.step][0].at
		if pause := at - before; pause < c.want || waitSteps[last.step] != c.want {
			t.Errorf("prompt %v: looks after %v, want %v", c.prompt, pause, c.want)
		}
	}
}
