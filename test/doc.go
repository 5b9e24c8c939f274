// SPDX-License-Identifier: Apache-2.0

// Package test holds what needs two routers, or a kernel other than this one.
//
//   - lab builds the network: LAN hosts, two routers with real keepalived, a
//     WAN server, out of namespaces; it breaks cables and routers on request,
//     and removes everything again.
//   - traffic makes flows through it and says which sources the server saw,
//     what was on the wire, and what broke. traffic/vptraffic is the same as a
//     program.
//   - vm boots other kernels.
//
// Tests here assert what a server or a wire saw, never what vippin says of
// itself alone. They need root and skip, saying so, without it. Everything runs
// on documentation and benchmark addresses (RFC 5737, 3849, 2544) inside
// namespaces that the tests made.
package test
