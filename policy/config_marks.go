// SPDX-License-Identifier: Apache-2.0

package policy

import "fmt"

// MarksMask is the part of a packet's mark that is vippin's on pinned interfaces
// where the kernel has no BTF.
const MarksMask = 0xff000000

// MarkWarnings names the marks of the configuration that lie in MarksMask, for a
// kernel without BTF.
func (c *Config) MarkWarnings() []string {
	var warnings []string
	for _, mark := range []struct {
		key  string
		mask uint32
	}{{"vrrp.tag.mark", c.VRRP.Tag.Mark.Mask}, {"sync.strict_mark", c.Sync.StrictMark.Mask}} {
		if taken := mark.mask & MarksMask; taken != 0 {
			warnings = append(warnings, fmt.Sprintf("%s uses the mask bits %#x, but on a kernel without BTF the bits %#x are vippin's own on pinned interfaces: take lower ones",
				mark.key, taken, uint32(MarksMask)))
		}
	}
	return warnings
}
