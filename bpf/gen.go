// SPDX-License-Identifier: Apache-2.0

package bpf

//go:generate -command compile go tool bpf2go -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -Wall -Wextra -Werror -Wno-unused-parameter -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu" -target bpfel
//go:generate compile -type advert -type claim -type claim_kind -type pin_counter -type vrrp_counter -type pin_flags -type mapping_flags -type advert_reason -type unique_state -type acknowledgement Dataplane dataplane.bpf.c
//go:generate compile -no-global-types Marks marks.bpf.c
//go:generate compile -type seen Generator generator.bpf.c
//go:generate compile -type fast_exit -type fast_refusal -type fast_ask -type fast4_entry -type fast6_entry -type fast_fate Fastpath fastpath.bpf.c -- -mcpu=v3
