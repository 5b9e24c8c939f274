// SPDX-License-Identifier: Apache-2.0

package policy

// AdvertReason says why an advert is not to be believed (RFC 9568 section
// 7.1). The numbers are those of the BPF enum vippin_advert_reason.
type AdvertReason uint8

// What can be wrong with an advert, in the order it is looked at.
const (
	AdvertValid    AdvertReason = iota
	AdvertShort                 // the packet ends before the VRRP header, or before what it announces
	AdvertVersion               // neither 2 nor 3, or 2 over IPv6
	AdvertType                  // not type 1, ADVERTISEMENT
	AdvertTTL                   // multicast with a TTL or hop limit other than 255
	AdvertAuth                  // authentication type unknown, or not as the packet carries it
	AdvertChecksum              // wrong with and without the pseudo-header
	AdvertFragment              // a fragment: adverts are never fragmented
	AdvertReasons               // how many there are
)

var advertReasonNames = [AdvertReasons]string{
	"valid", "short", "version", "type", "ttl", "auth", "checksum", "fragment",
}

func (r AdvertReason) String() string {
	if r < AdvertReasons {
		return advertReasonNames[r]
	}
	return "unknown"
}
