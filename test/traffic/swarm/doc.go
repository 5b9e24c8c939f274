// SPDX-License-Identifier: Apache-2.0

// Package swarm makes tens of thousands of flows in a few processes, and tells
// which of them survive. A worker is this program started again inside a
// network namespace (see Worker): a crowd of clients that ask at a slow, even
// pace, a server that notes which source it sees of each flow, probes that ask
// every few milliseconds, or a churn of new flows. The parent directs it over a
// unix socket. Nothing here knows of routers: survival is what sockets see.
package swarm
