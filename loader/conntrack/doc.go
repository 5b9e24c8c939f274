// SPDX-License-Identifier: Apache-2.0

// Package conntrack reads and changes this kernel's connection tracking table
// over ctnetlink: dumps, look-ups, native source NAT entries, deletions and
// events. It knows nothing of pins and mappings. Numbers and layouts are those
// of the kernel's uapi/linux/netfilter/nfnetlink_conntrack.h; all integers in
// its attributes are big endian.
package conntrack
