// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"fmt"
	"io/fs"
	"strings"
)

// cpio writes the "newc" archive that the kernel unpacks as its first root
// (Documentation/driver-api/early-userspace/buffer-format.rst).
type cpio struct {
	bytes.Buffer
	files int
}

// The file types of a cpio mode field, as in stat(2).
const (
	cpioDir  = 0o040000
	cpioFile = 0o100000
)

// dir adds a folder; its parent must have been added.
func (c *cpio) dir(name string) { c.entry(name, cpioDir|0o755, nil) }

// file adds a file; its folder must have been added.
func (c *cpio) file(name string, mode fs.FileMode, content []byte) {
	c.entry(name, cpioFile|uint32(mode.Perm()), content)
}

// end closes the archive and returns it.
func (c *cpio) end() []byte {
	c.entry("TRAILER!!!", 0, nil)
	return c.Bytes()
}

func (c *cpio) entry(name string, mode uint32, content []byte) {
	name = strings.TrimPrefix(name, "/")
	c.files++
	fields := [13]uint32{
		uint32(c.files), mode, 0, 0, 1, 0, // inode, mode, uid, gid, links, mtime
		uint32(len(content)), 0, 0, 0, 0, // size, device and special device numbers
		uint32(len(name) + 1), 0, // name with its NUL, checksum (none in "newc")
	}
	c.WriteString("070701")
	for _, field := range fields {
		fmt.Fprintf(c, "%08X", field)
	}
	c.WriteString(name + "\x00")
	c.align()
	c.Write(content)
	c.align()
}

// align fills up to a multiple of four octets.
func (c *cpio) align() {
	for c.Len()%4 != 0 {
		c.WriteByte(0)
	}
}
