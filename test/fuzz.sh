#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs every fuzzer of the module for a while, one after the other:
#     test/fuzz.sh [TIME]
# An input that fails is kept in the package's testdata/fuzz: commit it with the fix.
set -eu
cd "$(dirname "$0")/.."
for package in $(go list ./...); do
	for fuzzer in $(go test -list '^Fuzz' "$package" | grep '^Fuzz' || true); do
		echo "== $package $fuzzer"
		go test -run '^$' -fuzz "^$fuzzer\$" -fuzztime "${1:-5m}" -fuzzminimizetime 10x "$package"
	done
done
