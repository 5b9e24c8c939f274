// SPDX-License-Identifier: Apache-2.0

// Package vm boots Debian's kernels in an emulated machine and runs one command
// inside: what this machine's own kernel cannot show (8021q, nft queue,
// flowtables, queue disciplines, older kernels) is shown there.
//
// The kernels, "6.1" and "6.12", are Debian 12's packages linux-image-*-amd64
// (the second from bookworm-backports), downloaded with apt from the mirror this
// machine already uses and unpacked below .cache/vm in the checkout; nothing is
// installed and the machine's apt configuration stays as it is. The environment
// variable VIPPIN_VM_CACHE names another folder. A kernel that is there is not
// asked for again: remove its folder to get a newer one. The "cloud" packages do
// not serve, they lack 9p.
//
// The machine has no network device and no disk. Its root is the host's root,
// read-only over 9p, below an overlay in memory, so that every program and the
// checkout stand at their usual paths and anything may be written, until power
// off. /tmp and /run are empty (a checkout or cache below them is put back).
// /lib/modules holds the kernel's modules, the kernel loads them itself through
// /sbin/modprobe; bpffs is mounted. The first process is ./guest.
//
// By hand, from the checkout, as root (9p serves files as the user who runs it):
//
//	go run ./test/vm/cmd/vmrun -kernel 6.1 -- uname -a
//	go run ./test/vm/cmd/vmrun -kernel 6.12 -- sh -c 'modprobe 8021q && ip link'
//
// As a test, with everything it needs built first:
//
//	VIPPIN_VM=1 go test -count=1 -timeout 30m ./test/vm
//
// The scenarios of package test run there, too, over real VLANs: TestScenarios boots
// each kernel once, runs them in stages (RunStages), and has a subtest for each, with
// its log. One that skips says what the kernel lacks; one that passes on no kernel
// fails. Without VIPPIN_FULL=1 those that the list names run, mostly on both kernels,
// which run side by side; scenarios-6.1.log and scenarios-6.12.log in the cache tell how
// far they are. By hand:
//
//	make build
//	CGO_ENABLED=0 go test -c -o .cache/vm/bin/test.test ./test
//	go run ./test/vm/cmd/vmrun -mem 2048 -timeout 10m -kernel 6.1 -- sh -c \
//		'cd test && VIPPIN_BIN=$PWD/../bin/vippin VIPPIN_LAB_SLOWNESS=5 VIPPIN_LAB_TRUNK=tagged \
//		../.cache/vm/bin/test.test -test.short -test.v -test.run "^TestClash$"'
//
// Everything is emulated instruction by instruction (never KVM): booting takes 10
// to 20 s, programs run some ten times slower than natively. Look at functions
// there, never at rates.
//
// Needed: qemu-system-x86, kmod, apt, dpkg, xz-utils, and the go command.
package vm
