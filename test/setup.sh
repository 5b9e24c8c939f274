#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs what the Makefile's targets need and the machine lacks:
#     test/setup.sh build|run|test|failover|vm|lint ...
# Packages come from Debian by name. No daemon is started by installing it.
set -eu

packages=
need() { # need PROGRAM PACKAGE: the package is wanted unless the program is there
	command -v "$1" >/dev/null 2>&1 || packages="$packages $2"
}

PATH=$PATH:/usr/sbin:/sbin:/usr/local/go/bin
for what in "$@"; do
	case $what in
	build)
		need go golang-go
		need git git
		;;
	generate)
		need clang-19 clang-19
		need llvm-strip-19 llvm-19
		need protoc protobuf-compiler
		[ -e /usr/include/bpf/bpf_helpers.h ] || packages="$packages libbpf-dev"
		[ -e /usr/include/linux/bpf.h ] || packages="$packages linux-libc-dev"
		;;
	lint)
		need clang-format-19 clang-format-19
		;;
	run)
		need ip iproute2
		need nft nftables
		need keepalived keepalived
		;;
	test)
		need iptables iptables
		need ethtool ethtool
		need tcpdump tcpdump
		need ping iputils-ping
		need ipset ipset
		need gcc gcc # the race detector
		[ -e /usr/include/stdlib.h ] || packages="$packages libc6-dev"
		;;
	failover)
		need conntrackd conntrackd
		need conntrack conntrack
		;;
	vm)
		need qemu-system-x86_64 qemu-system-x86
		need busybox busybox-static
		need depmod kmod
		need xz xz-utils
		need zstd zstd
		;;
	*)
		echo "setup.sh: unknown part $what (build, failover, generate, lint, run, test, vm)" >&2
		exit 2
		;;
	esac
done
[ -n "$packages" ] || exit 0

root=
[ "$(id -u)" = 0 ] || root=sudo
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
	printf '#!/bin/sh\nexit 101\n' | $root tee $policy >/dev/null
	$root chmod 755 $policy
	trap '$root rm -f $policy' EXIT
fi
echo "installing:$packages"
$root apt-get update -qq
# shellcheck disable=SC2086 # a list of words
$root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null
