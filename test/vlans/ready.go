// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// readiness hears the daemon say that it is ready, as systemd does (sd_notify(3)).
type readiness struct{ conn *net.UnixConn }

func listenReady(dir string) (*readiness, error) {
	path := filepath.Join(dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("listen for the daemon's word: %w", err)
	}
	return &readiness{conn}, os.Setenv("NOTIFY_SOCKET", path) // what the lab starts inherits it
}

func (r *readiness) await(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = r.Close() }) // ends a Read
	defer stop()
	buffer := make([]byte, 4096)
	for {
		n, err := r.conn.Read(buffer)
		if err != nil {
			return fmt.Errorf("wait until the daemon is ready: %w", err)
		}
		if slices.Contains(strings.Split(string(buffer[:n]), "\n"), "READY=1") {
			return nil
		}
	}
}

func (r *readiness) Close() error { return r.conn.Close() }
