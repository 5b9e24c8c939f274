// SPDX-License-Identifier: Apache-2.0

// Command vippin is the daemon and its command line: it wires policy's
// decisions to loader's kernel. Verbs, control socket, renderers and the
// daemon's tasks belong here; whatever decides belongs to policy, whatever
// touches the kernel to loader.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := execute(ctx, newEnv(), os.Args[1:])
	stop()
	os.Exit(code)
}
