// SPDX-License-Identifier: Apache-2.0

package conntrack

import "testing"

// BenchmarkDecodeFlow reads an entry as NEW events of masqueraded TCP have it.
func BenchmarkDecodeFlow(b *testing.B) {
	message := rawFlow(
		attr(3, []byte{0, 0, 1, 0x88}),
		attr(4|nested, attr(1|nested, attr(1, []byte{1}), attr(2, []byte{7}), attr(3, []byte{0}),
			attr(4, []byte{0x23, 0}), attr(5, []byte{0, 0}))),
		attr(7, []byte{0, 0, 0, 120}),
		attr(8, []byte{0, 0, 1, 0}),
		attr(12, []byte{0xde, 0xad, 0, 1}),
		attr(18, []byte{0, 9}),
	)
	var d decoder
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.decode(message); err != nil {
			b.Fatal(err)
		}
	}
}
