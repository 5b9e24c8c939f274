// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// InstallExpectation makes what a peer's helper expects, of a flow that has been
// installed. fs.ErrNotExist: it has not.
func (r *Replica) InstallExpectation(e *policy.Expectation) error {
	expectation := conntrack.Expectation{
		Master: origTuple(&e.Master), AnySrc: e.AnySrc, Timeout: e.Timeout,
		Tuple: conntrack.Tuple{
			Src: e.Src.IP(), Dst: e.Dst.IP(), Proto: e.Proto, SrcPort: e.Src.Port, DstPort: e.Dst.Port, Zone: e.Master.Zone,
		},
		Helper: e.Helper, Flags: conntrack.ExpectFlags(e.Flags), Class: e.Class, Function: e.Function,
		NATReply: e.NATReply,
	}
	if e.NAT != (policy.End{}) {
		expectation.NAT = e.NAT.AddrPort()
	}
	results, err := r.conn.Expect([]conntrack.Expectation{expectation})
	if err == nil && !errors.Is(results[0], conntrack.ErrExist) {
		err = results[0]
	}
	if err != nil {
		return fmt.Errorf("install expectation: %w", err)
	}
	return nil
}
