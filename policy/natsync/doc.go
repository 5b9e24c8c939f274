// SPDX-License-Identifier: Apache-2.0

// Package natsync keeps two routers' tables of translated flows alike. Here belong
// the messages that peers exchange (natsync.proto), the Session that queues, batches
// and acknowledges them over a stream that is handed in, and what decides whose word
// counts: who is master of which group, which deletes are held back, which flow is
// whose. There is no other I/O, and time comes in as an argument.
package natsync

//go:generate sh -c "protoc --plugin=protoc-gen-go=$(go tool -n protoc-gen-go) --go_out=. --go_opt=paths=source_relative natsync.proto"
