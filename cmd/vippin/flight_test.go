// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vippin/loader"
	"vippin/policy"
	"vippin/policy/flight"
	"vippin/policy/vrrp"
)

var _ flightPlane = (*loader.Dataplane)(nil)

// fakeFlightPlane is maps that say what they are told to.
type fakeFlightPlane struct {
	mu       sync.Mutex
	mappings []policy.Mapping
	out, in  time.Duration // of pin 1
	resets   uint64
	held     uint64 // by sync.no_rst
	scans    int
}

// set changes what the maps say.
func (f *fakeFlightPlane) set(what func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	what()
}

func (f *fakeFlightPlane) resetsHeld() (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.held, nil
}

func (f *fakeFlightPlane) Flows(yield func(policy.Mapping) bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.scans++
	for _, m := range f.mappings {
		if !yield(m) {
			break
		}
	}
	return nil
}

func (f *fakeFlightPlane) Passages(pin uint32) (out, in time.Duration, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if pin != 1 {
		return 0, 0, nil
	}
	return f.out, f.in, nil
}

func (f *fakeFlightPlane) PinCounters() (map[uint32]loader.PinCounters, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return map[uint32]loader.PinCounters{1: {Resets: f.resets}, 2: {Resets: 1000}}, nil
}

// recording is a flight log that runs, within a synctest bubble.
type recording struct {
	*flightLog
	t      *testing.T
	dir    string
	plane  *fakeFlightPlane
	events []policy.Event
	end    func()
}

func flightPlan() policy.Plan {
	return policy.Plan{
		Groups: []policy.PlanGroup{{ID: 1, Name: core}, {ID: 2, Name: "Guests"}},
		Pins: []policy.PlanPin{
			{ID: 1, Group: 1, Interface: "wan0", Ifindex: 3, VIPs: addrs("198.51.100.2", "2001:db8::2")},
			{ID: 2, Group: 2, Interface: "wan1", Ifindex: 4, VIPs: addrs("203.0.113.2")},
		},
		Interfaces: []policy.PlanInterface{
			{Index: 3, Name: "wan0", Uniques: addrs("198.51.100.3", "fe80::3"), VRIDs: []policy.PlanVRID{{VRID: 20, Group: 1}}},
			{Index: 4, Name: "wan1", Uniques: addrs("203.0.113.3")},
			{Index: 5, Name: "lan0", VRIDs: []policy.PlanVRID{{VRID: 10, Group: 1}}},
		},
	}
}

func startRecording(t *testing.T, dir string) *recording {
	t.Helper()
	began := time.Now()
	e := &env{now: time.Now, monotonic: func() time.Duration { return time.Since(began) + time.Hour }}
	r := &recording{t: t, dir: dir, plane: &fakeFlightPlane{}}
	r.flightLog = newFlightLog(e, slog.New(slog.DiscardHandler), r.plane, func(event policy.Event) { r.events = append(r.events, event) }, dir)
	r.plane.resets, r.plane.held = 5, 7
	r.resetsHeld = r.plane.resetsHeld
	if err := r.load(); err != nil {
		t.Fatal(err)
	}
	r.planned(flightPlan())
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	r.end = func() { cancel(); done.Wait() }
	synctest.Wait()
	return r
}

// becomes has the tracker decide about the group now.
func (r *recording) becomes(role policy.Role) {
	r.decided(r.clock().Mono, []vrrp.Change{
		{Pin: 1, Group: 1, Role: role, RoleChanged: true},
		{Group: 1, Name: core, Role: role, RoleChanged: true},
	})
	synctest.Wait()
}

// onDisk is what the file holds.
func (r *recording) onDisk() []policy.Failover {
	r.t.Helper()
	records, err := failoverStore{dir: r.dir}.Load()
	if err != nil {
		r.t.Fatal(err)
	}
	return records
}

func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// A record is on the disk at once, grows with what is seen, is told when it is
// complete, and outlives the daemon.
func TestFlightLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startRecording(t, t.TempDir())
		r.becomes(policy.RoleMaster) // before its time
		r.begin([]policy.GroupStatus{{Name: core, Role: policy.RoleBackup}, {Name: "Guests", Role: policy.RoleMaster}})
		r.becomes(policy.RoleMaster)
		now := r.clock().Mono
		if records := r.onDisk(); len(records) != 1 || records[0].Complete || records[0].Role != policy.RoleMaster {
			t.Fatalf("at the opening: %+v", records)
		}
		r.taken(now, core, 3, 1)
		r.normalised(now, map[string]int{core: 2, "Guests": 9})
		r.plane.set(func() {
			r.plane.mappings = []policy.Mapping{
				{Pin: 1, Born: 1, LastOut: now + 1},
				{Pin: 1, Born: 1, LastIn: now + 1},
				{Pin: 1, Born: 1, LastOut: now - time.Second, LastIn: now - time.Second}, // silent
				{Pin: 1, Born: now + 1, LastOut: now + 1},                                // new
				{Pin: 2, Born: 1, LastOut: now + 1},                                      // another group's
			}
			r.plane.resets, r.plane.held = 6, 17
		})
		pass(passageSoon)
		r.plane.set(func() { r.plane.out, r.plane.in = now+time.Millisecond, now+2*time.Millisecond })
		pass(2 * time.Second)
		record := r.onDisk()[0]
		want := policy.FailoverFlows{TakenOver: 3, SpokeAgain: 2, Lost: 1, Normalised: 2, Resets: 1, ResetsHeld: 10}
		if record.Flows != want {
			t.Errorf("flows %+v, want %+v", record.Flows, want)
		}
		var steps []string
		for _, s := range record.Steps {
			steps = append(steps, s.What)
		}
		for _, what := range []string{flight.RoleInForce, flight.FirstPinned, flight.FirstReply, flight.TakenOver, flight.Normalised} {
			if !slices.Contains(steps, what) {
				t.Errorf("%s is missing in %v", what, steps)
			}
		}
		pass(time.Minute)
		if record := r.onDisk()[0]; !record.Complete || record.Note != "" {
			t.Errorf("after a minute: %+v", record)
		}
		if len(r.events) != 1 || r.events[0].Kind != "failover" || r.events[0].Group != core || *r.events[0].Role != policy.RoleMaster ||
			!strings.HasPrefix(r.events[0].Detail, core+": MASTER; ") {
			t.Errorf("told: %+v", r.events)
		}
		if scans := r.plane.scans; scans != len(flowLooks) {
			t.Errorf("the flows were looked at %d times", scans)
		}
		if n := len(r.records(t.Context())); n != 1 || r.plane.scans != len(flowLooks) {
			t.Errorf("%d records; asking looked at the flows though nothing is open", n)
		}
		r.end()
	})
}

// One change after the other: each is on the disk at once, and has its own counts;
// the last one is cut off.
func TestFlightLogOverAndOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startRecording(t, t.TempDir())
		r.begin([]policy.GroupStatus{{Name: core, Role: policy.RoleMaster}})
		r.plane.set(func() { r.plane.resets = 100 }) // in all the time that it was MASTER
		for i, role := range []policy.Role{policy.RoleFault, policy.RoleMaster, policy.RoleBackup, policy.RoleMaster} {
			pass(10 * time.Millisecond)
			r.becomes(role)
			if n := len(r.onDisk()); n != i+1 {
				t.Errorf("%d records on the disk after %d changes", n, i+1)
			}
		}
		pass(2 * time.Second)
		if record := r.onDisk()[3]; record.Flows.Resets != 0 {
			t.Errorf("RSTs of before count: %+v", record.Flows)
		}
		r.end()

		again := startRecording(t, r.dir)
		again.begin([]policy.GroupStatus{{Name: core, Role: policy.RoleMaster}})
		pass(time.Second)
		records := again.onDisk()
		if len(records) != 4 || !records[2].Complete || records[3].Complete || !strings.Contains(records[3].Note, "the daemon ended") {
			t.Errorf("after a restart: %+v", records)
		}
		again.end()
	})
}

// A disk that takes nothing ends nothing: it is said once, and tried again.
func TestFlightLogWithoutDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inTheWay := filepath.Join(t.TempDir(), "state")
		if err := os.WriteFile(inTheWay, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		r := startRecordingAnyway(t, inTheWay)
		r.begin([]policy.GroupStatus{{Name: core, Role: policy.RoleMaster}})
		r.becomes(policy.RoleBackup)
		pass(2 * time.Minute)
		if n := len(r.records(t.Context())); n != 1 {
			t.Errorf("%d records are remembered", n)
		}
		var kinds []string
		for _, event := range r.events {
			kinds = append(kinds, event.Kind)
		}
		if !slices.Equal(kinds, []string{"warning", "failover"}) {
			t.Errorf("told: %q", kinds)
		}
		if err := os.Remove(inTheWay); err != nil {
			t.Fatal(err)
		}
		pass(saveAgain)
		if records := r.onDisk(); len(records) != 1 || !records[0].Complete {
			t.Errorf("when there is room again: %+v", records)
		}
		r.end()
	})
}

func startRecordingAnyway(t *testing.T, dir string) *recording {
	t.Helper()
	r := startRecording(t, t.TempDir())
	r.store.dir, r.dir = dir, dir
	return r
}

// What cannot be read is moved aside, and what a killed daemon left half done is
// removed.
func TestDamagedRecords(t *testing.T) {
	for name, content := range map[string]string{"damaged": `[{"group": "RouterCore", "ro`, "empty": "", "something else": `{"a": 1}`} {
		t.Run(name, func(t *testing.T) {
			store := failoverStore{dir: t.TempDir()}
			half := filepath.Join(store.dir, "."+failoversName+".123")
			for path, text := range map[string]string{store.path(): content, half: "["} {
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := store.Load(); err == nil || !strings.Contains(err.Error(), "damaged") {
				t.Errorf("reading it alone: %v", err)
			}
			records, err := store.Take()
			if err == nil || len(records) != 0 || !strings.Contains(err.Error(), store.path()+".damaged") {
				t.Errorf("%d records, %v", len(records), err)
			}
			if kept, err := os.ReadFile(store.path() + ".damaged"); err != nil || string(kept) != content {
				t.Errorf("kept aside: %q, %v", kept, err)
			}
			if _, err := os.Stat(half); err == nil {
				t.Error("what was half written is still there")
			}
			if records, err := store.Take(); err != nil || len(records) != 0 {
				t.Errorf("the second time: %d records, %v", len(records), err)
			}
		})
	}
}

// The file is bounded: the oldest records make room.
func TestRecordsAreBounded(t *testing.T) {
	var records []policy.Failover
	for i := range 200 {
		records = append(records, policy.Failover{
			Group: core, Time: testNow.Add(time.Duration(i) * time.Second), Note: strings.Repeat("x", 10000),
		})
	}
	data, err := encodeFailovers(records)
	if err != nil || len(data) > failoversMost || len(data) < failoversMost/2 {
		t.Fatalf("%d octets, %v", len(data), err)
	}
	var kept []policy.Failover
	if err := json.Unmarshal(data, &kept); err != nil || !kept[len(kept)-1].Time.Equal(records[199].Time) {
		t.Errorf("%d records, %v", len(kept), err)
	}
	if data, err := encodeFailovers(nil); err != nil || string(data) != "[]\n" {
		t.Errorf("none: %q, %v", data, err)
	}
}

// vrrpAdvert is an advert with one VIP, as the programs hand it over.
func vrrpAdvert(t *testing.T, ifindex int, direction policy.Direction, src string, vrid, priority uint8, vip string, at time.Duration) policy.AdvertSeen {
	t.Helper()
	from, to := netip.MustParseAddr(src), netip.MustParseAddr("224.0.0.18")
	payload, err := vrrp.Append(nil, vrrp.Advert{
		Version: 3, VRID: vrid, Priority: priority, Interval: 100 * time.Millisecond, Checksum: vrrp.ChecksumRFC, VIPs: addrs(vip),
	}, from, to)
	if err != nil {
		t.Fatal(err)
	}
	return policy.AdvertSeen{Time: at, Ifindex: ifindex, Direction: direction, Src: from, Dst: to, TTL: 255, Payload: payload}
}

func seenLinks(down map[int]bool, addrs map[int][]string) (seen policy.Observed) {
	for index, name := range map[int]string{3: "wan0", 4: "wan1", 5: "lan0", 9: "vrrp.20"} {
		link := policy.Link{Index: index, Name: name, Kind: "veth", Up: !down[index]}
		if index == 9 {
			link.Kind, link.Parent = "macvlan", 3
		}
		for _, text := range addrs[index] {
			link.Addrs = append(link.Addrs, policy.Addr{Prefix: netip.MustParsePrefix(text)})
		}
		seen.Links = append(seen.Links, link)
	}
	return seen
}

// What the loop tells is told of the right group, with the kernel's times.
func TestFlightFeed(t *testing.T) {
	now := time.Hour
	e := &env{now: func() time.Time { return testNow }, monotonic: func() time.Duration { return now }}
	l := newFlightLog(e, slog.New(slog.DiscardHandler), &fakeFlightPlane{}, func(policy.Event) {}, t.TempDir())
	l.planned(flightPlan())
	l.begin([]policy.GroupStatus{{Name: core, Role: policy.RoleBackup}, {Name: "Guests", Role: policy.RoleMaster}})
	const ms = time.Millisecond
	l.advert(vrrpAdvert(t, 5, policy.In, "192.168.101.3", 10, 150, "192.168.101.1", now-900*ms))
	l.advert(vrrpAdvert(t, 4, policy.In, "203.0.113.4", 77, 150, "203.0.113.2", now-800*ms)) // by its VIP another group's
	l.advert(vrrpAdvert(t, 3, policy.In, "198.51.100.4", 20, 150, "198.51.100.2", now-700*ms))
	l.advert(vrrpAdvert(t, 3, policy.In, "198.51.100.3", 20, 100, "198.51.100.2", now-600*ms))  // our own, come back
	l.advert(vrrpAdvert(t, 3, policy.In, "198.51.100.4", 21, 150, "198.51.100.99", now-500*ms)) // nobody's
	tagged := vrrpAdvert(t, 3, policy.In, "198.51.100.4", 20, 150, "198.51.100.2", now-450*ms)  // another VLAN's
	tagged.VLAN = policy.VLAN{Outer: 7}
	l.advert(tagged)
	bad := vrrpAdvert(t, 3, policy.In, "198.51.100.4", 20, 150, "198.51.100.2", now-400*ms)
	bad.Payload[6]++
	l.advert(bad)
	l.advert(vrrpAdvert(t, 3, policy.Out, "198.51.100.3", 20, 100, "198.51.100.2", now-255*ms))
	was := seenLinks(nil, map[int][]string{3: {"198.51.100.3/24"}, 4: {"203.0.113.2/24"}})
	is := seenLinks(map[int]bool{4: true}, map[int][]string{3: {"198.51.100.3/24", "2001:db8::2/128"}, 9: {"198.51.100.2/32"}})
	l.linkEvent(loader.LinkEvent{Kind: loader.AddrChanged, Ifindex: 9, Time: now - 250*ms})
	l.linkEvent(loader.LinkEvent{Kind: loader.AddrChanged, Ifindex: 9, Time: now - 100*ms}) // the same again
	l.linkEvent(loader.LinkEvent{Kind: loader.AddrChanged, Ifindex: 3, Time: now - 240*ms})
	l.linkEvent(loader.LinkEvent{Kind: loader.LinkChanged, Ifindex: 4, Time: now - 230*ms})
	l.observed(was, is)
	l.observed(is, is) // nothing more
	l.decided(now-10*ms, []vrrp.Change{
		{Pin: 1, Group: 1, RoleChanged: true, Role: policy.RoleMaster}, {Group: 1, Name: core, RoleChanged: true, Role: policy.RoleMaster},
		{Pin: 2, Group: 2, RoleChanged: true, Role: policy.RoleFault}, {Group: 2, Name: "Guests", RoleChanged: true, Role: policy.RoleFault},
	})
	records := l.records(t.Context())
	if len(records) != 2 {
		t.Fatalf("the records are %+v", records)
	}
	wants := map[string][]string{
		core: {
			"last_advert -700ms 198.51.100.4, VRID 20 on wan0, priority 150, every 100ms",
			"first_own_advert -255ms 198.51.100.3, VRID 20 on wan0, priority 100, every 100ms",
			"vip_added -250ms 198.51.100.2 on wan0", "vip_added -240ms 2001:db8::2 on wan0",
			"role -10ms MASTER, was BACKUP", "role_in_force 0s MASTER",
		},
		"Guests": {
			"vip_removed -230ms 203.0.113.2 on wan1", "link_down -230ms wan1", "role -10ms FAULT, was MASTER", "role_in_force 0s FAULT",
		},
	}
	for _, f := range records {
		var got []string
		for _, s := range f.Steps {
			got = append(got, s.What+" "+s.Time.Sub(testNow).String()+" "+s.Detail)
		}
		slices.Sort(got)
		want := slices.Sorted(slices.Values(wants[f.Group]))
		if !slices.Equal(got, want) {
			t.Errorf("%s:\n%q\nwant\n%q", f.Group, got, want)
		}
	}
}

// refuse has the kernel take no flows, or take them again.
func (f *fakeTable) refuse(all bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.full = all
}

// Of the flows that a MASTER tells of, those count as lost at a takeover that were
// refused, or went missing, and have not come since.
func TestReplicateCountsWhatIsNotReady(t *testing.T) {
	inCouple(t, func(t *testing.T, c *couple) {
		c.b.flows.flight = newFlightLog(&env{now: time.Now, monotonic: c.b.flows.monotonic}, slog.New(slog.DiscardHandler),
			&fakeFlightPlane{}, func(policy.Event) {}, t.TempDir())
		c.b.flows.flight.begin([]policy.GroupStatus{{Name: core, Role: policy.RoleBackup}})
		c.a.begin(1, 2, 3)
		c.settle()
		c.b.end(1) // went missing, and comes again
		c.settle()
		time.Sleep(missingEvery)
		c.settle()
		c.b.kernel.refuse(true)
		c.a.begin(6) // refused, and has ended when all is told again
		c.settle()
		c.cut()
		c.a.end(6)
		time.Sleep(5 * time.Second)
		c.b.kernel.refuse(false)
		c.join()
		c.b.kernel.refuse(true)
		c.a.begin(4, 5, 7)
		c.settle()
		c.b.kernel.refuse(false)
		c.a.begin(7) // there is room now
		c.settle()
		c.a.end(5) // refused, and has ended meanwhile
		time.Sleep(5 * time.Second)
		c.settle()
		c.b.end(2) // went missing just now
		synctest.Wait()
		log := c.b.flows.flight
		log.decided(c.b.flows.monotonic(), []vrrp.Change{{Group: 1, Name: core, RoleChanged: true, Role: policy.RoleMaster}})
		c.b.flows.SetRole(core, policy.RoleMaster)
		c.settle()
		record := log.records(t.Context())[0]
		if f := record.Flows; f.TakenOver != 3 || f.Lost != 2 || f.Normalised < 3 { // the fake's timeouts never become ordinary
			t.Errorf("flows %+v", f)
		}
		if record.Other != "a" {
			t.Errorf("took over from %q", record.Other)
		}
	})
}

// What is remembered flow by flow is bounded.
func TestUnreadyIsBounded(t *testing.T) {
	u := make(unready)
	for i := range unreadyMost + 1000 {
		u.note(policy.FlowKey{Zone: uint16(i), Proto: uint8(i >> 16), Src: policy.End{Port: uint16(i >> 8)}}, core)
	}
	if n := len(u); n != unreadyMost {
		t.Errorf("%d flows are remembered", n)
	}
	if n := u.take(core); n != unreadyMost || len(u) != 0 {
		t.Errorf("%d taken, %d left", n, len(u))
	}
}
