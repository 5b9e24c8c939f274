// SPDX-License-Identifier: Apache-2.0

// Package natsync keeps two routers' tables of translated flows alike. Here belong
// the messages that peers exchange, as protobuf over a reliable ordered stream, the
// Session that queues, batches and acknowledges them, and the Ledger, which decides
// whose word counts. There is no I/O but the stream that is handed in.
package natsync

//go:generate sh -c "protoc --plugin=protoc-gen-go=$(go tool -n protoc-gen-go) --go_out=. --go_opt=paths=source_relative natsync.proto"
