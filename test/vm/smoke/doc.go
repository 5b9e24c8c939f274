// SPDX-License-Identifier: Apache-2.0

// Package smoke holds what runs inside the emulated machine of package vm: tests,
// behind the build tag vmsmoke, that need a kernel with 8021q and queue
// disciplines and a vippin program, whose path is in VIPPIN_BIN. Package vm's own
// test builds and starts them. They make every namespace they use; on this
// machine itself they have no business. The TestKernel ones have a boot of their own,
// in which TestKernelModulesLate comes before anything that loads modules.
//
// One kernel, by hand, as root:
//
//	make build
//	CGO_ENABLED=0 go test -c -tags vmsmoke -o .cache/vm/bin/smoke.test ./test/vm/smoke
//	go run ./test/vm/cmd/vmrun -kernel 6.1 -- env VIPPIN_BIN=$PWD/bin/vippin .cache/vm/bin/smoke.test -test.v
package smoke
