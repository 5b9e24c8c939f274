// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
)

// readRing hands every record of a ring buffer to handle, in order, until ctx
// ends; then it returns nil. What decode returns must not refer to the record,
// which is used again.
func readRing[T any](ctx context.Context, ring *ebpf.Map, what string, decode func([]byte) (T, error), handle func(T) error) error {
	reader, err := ringbuf.NewReader(ring)
	if err != nil {
		return fmt.Errorf("read %s: %w", what, err)
	}
	defer func() { _ = reader.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = reader.Close() })
	defer stop()
	var record ringbuf.Record
	for {
		if err := reader.ReadInto(&record); err != nil {
			if ctx.Err() != nil && errors.Is(err, os.ErrClosed) {
				return nil
			}
			return fmt.Errorf("read %s: %w", what, err)
		}
		value, err := decode(record.RawSample)
		if err != nil {
			return fmt.Errorf("read %s: %w", what, err)
		}
		if err := handle(value); err != nil {
			return err
		}
	}
}
