// SPDX-License-Identifier: Apache-2.0

// Package traffic makes flows and watches them: an echo server that says which
// source address it saw, TCP, UDP and ping clients that keep asking it, one-way
// streams, bulk transfers with a checksum at both ends, frames seen on a wire,
// and the kernel's checksum error counters. Everything runs in this process; a
// socket belongs to the network namespace it was created in, so only creating
// it needs a thread in there (see Enter). Nothing here knows of routers or of
// vippin: what the server saw is the only truth.
package traffic
