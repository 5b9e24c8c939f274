// SPDX-License-Identifier: Apache-2.0

package policy

// ProgramCost is what a loaded program takes for a packet.
type ProgramCost struct {
	Interface string  `json:"interface"`
	Hook      string  `json:"hook"`    // ingress, egress, xdp
	Program   string  `json:"program"` // its name
	ID        uint32  `json:"id"`      // as bpftool has it
	Packet    string  `json:"packet"`  // what it was given
	Ns        float64 `json:"ns"`
	Runs      int     `json:"runs"`
}
