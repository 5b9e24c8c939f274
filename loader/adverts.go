// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"time"
	"unsafe"

	"vippin/bpf"
	"vippin/policy"
)

// advertHeader is the size of what stands before a packet's octets in the ring
// buffer.
const advertHeader = int(unsafe.Sizeof(bpf.DataplaneAdvert{}))

// Adverts hands every VRRP packet that the programs see to handle, in order,
// until ctx ends; then it returns nil. There is one ring buffer: of several
// readers, each would miss what the others take.
func (d *Dataplane) Adverts(ctx context.Context, handle func(policy.AdvertSeen) error) error {
	return readRing(ctx, d.maps.Adverts, "adverts", decodeAdvert, handle)
}

// decodeAdvert reads one record: struct advert and the octets it announces, of
// which fewer may be there.
func decodeAdvert(record []byte) (policy.AdvertSeen, error) {
	if len(record) < advertHeader {
		return policy.AdvertSeen{}, fmt.Errorf("a record of %d octets is shorter than its header", len(record))
	}
	var head bpf.DataplaneAdvert
	if _, err := binary.Decode(record[:advertHeader], binary.NativeEndian, &head); err != nil {
		return policy.AdvertSeen{}, fmt.Errorf("decode a record: %w", err)
	}
	payload := record[advertHeader:]
	payload = payload[:min(len(payload), int(head.Len))]
	seen := policy.AdvertSeen{
		Time: time.Duration(head.TimeNs), Ifindex: int(head.Ifindex),
		VLAN: policy.VLAN{Outer: head.VlanOuter, Inner: head.VlanInner},
		Src:  wordsAddr(head.Src.Word), Dst: wordsAddr(head.Dst.Word), SrcMAC: head.SrcMac,
		TTL: head.Ttl, AH: head.Ah != 0, Reason: policy.AdvertReason(head.Reason),
		Payload: bytes.Clone(payload),
	}
	if head.Out != 0 {
		seen.Direction = policy.Out
	}
	return seen, nil
}
