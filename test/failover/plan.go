// SPDX-License-Identifier: Apache-2.0

package main

// defaults is what "make bench-failover" measures: every arm and every fault
// once or twice, in less than 25 minutes.
func defaults() []Case {
	base := selection{
		kinds: []kind{survive}, arms: mainArms, faults: []string{hard}, firewalls: []string{stateful},
		families: []string{"ipv4"}, ages: []string{young}, only: []string{""}, ways: ways,
		flows: []int{1000}, adverts: []int{100}, rounds: 1,
	}
	edit := func(change func(*selection)) []Case {
		s := base
		change(&s)
		return s.cases()
	}
	return merge(
		edit(func(s *selection) { s.flows, s.rounds = []int{100, 1000, 10000}, 2 }),
		edit(func(s *selection) { s.ages, s.arms = []string{old}, agedArms }),
		edit(func(s *selection) { s.flows, s.only, s.arms = []int{50000}, []string{"udp"}, replicatingArms }),
		edit(func(s *selection) { s.faults, s.arms = []string{crash, graceful}, replicatingArms }),
		edit(func(s *selection) { s.firewalls, s.arms = []string{open}, replicatingArms }),
		edit(func(s *selection) { s.families, s.arms = []string{"ipv6"}, replicatingArms }),
		edit(func(s *selection) { s.flows, s.adverts, s.arms = []int{10000}, []int{10}, replicatingArms }),
		edit(func(s *selection) { s.kinds, s.flows, s.rounds = []kind{cost}, []int{100_000}, 2 }),
		edit(func(s *selection) { s.kinds, s.flows, s.ways = []kind{rate}, []int{240_000}, []string{oneWay} }),
		edit(func(s *selection) { s.kinds, s.flows, s.ways = []kind{bulk}, []int{100_000}, []string{oneWay} }),
		edit(func(s *selection) {
			s.kinds, s.flows, s.ways, s.arms = []kind{memory}, []int{200_000}, []string{oneWay}, []string{"vippin", "direct"}
		}),
		edit(func(s *selection) { s.kinds, s.flows, s.arms, s.rounds = []kind{newborn}, []int{2000}, youngArms, 2 }),
		edit(func(s *selection) { s.kinds, s.flows, s.arms = []kind{latency}, []int{1000}, latencyArms }),
		edit(func(s *selection) { s.kinds, s.flows, s.arms = []kind{trials}, []int{5000}, []string{"strict"} }),
		edit(func(s *selection) { s.flows, s.rounds, s.arms = []int{100}, 20, []string{"vippin"} }),
	)
}

// full is the whole matrix: some hours, which may be interrupted.
func full() []Case {
	base := selection{
		kinds: []kind{survive}, arms: mainArms, faults: []string{hard, crash, graceful}, firewalls: firewalls,
		families: families, ages: []string{young}, only: []string{""}, ways: ways,
		flows: []int{100, 1000, 10000}, adverts: []int{100}, rounds: 3,
	}
	edit := func(change func(*selection)) []Case {
		s := base
		change(&s)
		return s.cases()
	}
	const many = 20
	worst := func(s *selection) {
		s.faults, s.firewalls, s.families = []string{hard}, []string{stateful}, []string{"ipv4"}
	}
	churn := func(k kind, flows int, ways []string) []Case {
		return edit(func(s *selection) {
			s.kinds, s.flows, s.ways, s.rounds, s.arms = []kind{k}, []int{flows}, ways, 5, replicatingArms
		})
	}
	return merge(
		base.cases(),
		edit(func(s *selection) { worst(s); s.rounds, s.arms = many, replicatingArms }),
		edit(func(s *selection) {
			worst(s)
			s.rounds, s.adverts, s.arms, s.flows = many, []int{10}, replicatingArms, []int{1000, 10000}
		}),
		edit(func(s *selection) { s.ages, s.arms, s.flows, s.rounds = []string{old}, agedArms, []int{1000}, 1 }),
		edit(func(s *selection) { worst(s); s.flows, s.only = []int{50000}, []string{"udp"} }),
		edit(func(s *selection) {
			worst(s)
			s.kinds, s.flows, s.arms, s.rounds = []kind{newborn}, []int{2000}, youngArms, many
		}),
		edit(func(s *selection) { s.kinds, s.flows, s.arms, s.rounds = []kind{latency}, []int{2000}, latencyArms, 5 }),
		edit(func(s *selection) {
			s.kinds, s.flows, s.arms, s.rounds = []kind{trials}, []int{5000}, []string{"strict", "vippin"}, 3
		}),
		churn(cost, 100_000, ways),
		churn(rate, 240_000, []string{oneWay}),
		churn(bulk, 100_000, []string{oneWay}),
		churn(memory, 200_000, []string{oneWay}),
	)
}
