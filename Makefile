# SPDX-License-Identifier: Apache-2.0
# make build | demo | test | test-vm | verifier | bench | bench-flows | bench-failover | bench-vlans | fuzz | generate | lint | man | clean
# Targets that touch packets need root; each installs what it lacks.

export PATH := $(PATH):/usr/local/go/bin:/usr/sbin:/sbin
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
GO := go
LDFLAGS := -s -w -X main.version=$(VERSION)

.PHONY: build demo test test-vm verifier bench bench-flows bench-failover bench-vlans fuzz generate generate-check lint man clean

build:
	@test/setup.sh build
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/vippin ./cmd/vippin

# The main job on real packets, told as a story.
demo: build
	@test/setup.sh run
	@VIPPIN_BIN=$(CURDIR)/bin/vippin $(GO) run ./test/demo

test: build
	@test/setup.sh build run test failover
	VIPPIN_BIN=$(CURDIR)/bin/vippin $(if $(FULL),VIPPIN_FULL=1) $(GO) test -race -parallel 4 -timeout 20m $(TESTFLAGS) ./test ./...

# Older kernels and real VLANs, under emulation: at most 15 minutes; FULL=1 has every
# scenario run on every kernel, which takes an hour to an hour and a half.
test-vm: build
	@test/setup.sh build vm run test
	VIPPIN_VM=1 $(if $(FULL),VIPPIN_FULL=1) $(GO) test -timeout $(if $(FULL),180m,30m) -count=1 -v ./test/vm/...

# What the verifiers of this kernel and of the older ones make of every BPF program:
# the table in docs/kernels.md. A minute.
verifier:
	@test/setup.sh build vm
	$(GO) run ./test/vm/cmd/verifier

# What a packet costs, through the plain kernel, with vippin and past the stack: some
# 5 minutes on a machine that does nothing else. Tables and plot go to docs/bench.
# JSON=1 prints JSON, BENCHFLAGS='--flows 1000000 --raise-limits' measures that instead.
BENCHFLAGS_ALL := --rounds 3 --seconds 0.4
bench:
	@$(MAKE) --no-print-directory build >&2
	@bin/vippin bench $(if $(JSON),-j) $(or $(BENCHFLAGS),$(BENCHFLAGS_ALL) --markdown docs/bench/packet.md --plot docs/bench/packet.svg)

# The same of 1 to 4,000,000 flows, bare redirect and fast path: some 11 minutes.
BENCHFLAGS_FLOWS := --cases redirect,vippin-fast --families ipv4 --directions out --sizes 64 --rounds 3 \
	--flows 1,10,100,1000,10000,100000,1000000,4000000
bench-flows:
	@$(MAKE) --no-print-directory bench BENCHFLAGS='$(BENCHFLAGS_FLOWS) --markdown docs/bench/flows.md --plot docs/bench/flows.svg'

# What survives when a router dies, beside conntrackd: at most 25 minutes; FULL=1 is
# the whole matrix, some hours, and goes on where it was interrupted. JSON=1 prints
# the raw results, BENCHFLAGS='--arms vippin,direct --flows 1000' measures that alone.
# Tables and plots go to docs/bench.
bench-failover:
	@$(MAKE) --no-print-directory build >&2
	@test/setup.sh run test failover >&2
	@$(GO) build -o bin/failover ./test/failover
	@VIPPIN_BIN=$(CURDIR)/bin/vippin bin/failover $(if $(JSON),-j) $(if $(FULL),-full) $(BENCHFLAGS)

# What a trunk of 1, 50 and 200 VLANs takes, to docs/bench/vlans.md: 5 minutes, and 15
# in emulated machines with real VLANs, unless BENCHFLAGS= leaves them out.
bench-vlans: BENCHFLAGS ?= -vm
bench-vlans: build
	@test/setup.sh run test $(if $(findstring -vm,$(BENCHFLAGS)),vm)
	VIPPIN_BIN=$(CURDIR)/bin/vippin $(GO) run ./test/vlans -file docs/bench/vlans.md $(BENCHFLAGS)

# What the fuzzers find goes into testdata/fuzz.
FUZZTIME := 5m
fuzz:
	@test/setup.sh build
	test/fuzz.sh $(FUZZTIME)

# The BPF objects and the messages of peers are committed: building vippin needs
# neither clang nor protoc.
GENERATED := ./bpf ./policy/natsync
generate:
	@test/setup.sh build generate
	$(GO) generate $(GENERATED)

generate-check: generate
	@git diff --exit-code --stat -- $(GENERATED) || \
		{ echo 'what is committed as generated is not what the source gives: run make generate and commit' >&2; exit 1; }

lint:
	@test/setup.sh build lint
	@test -z "$$(gofmt -l .)" || { echo "gofmt wants to change:"; gofmt -l .; exit 1; } >&2
	clang-format-19 --dry-run -Werror bpf/*.c bpf/*.h
	$(GO) vet -tags vmsmoke ./...
	$(GO) tool staticcheck -tags vmsmoke ./...

man: build
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) bin/vippin man bin/man

clean:
	rm -rf bin
