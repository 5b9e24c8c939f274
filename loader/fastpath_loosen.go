// SPDX-License-Identifier: Apache-2.0

package loader

// loosened is how many TCP connections Run has made liberal.
func (f *Fastpath) loosened() uint64 { return 0 }
