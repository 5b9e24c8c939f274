// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"time"

	"vippin/bpf"
)

// OwnAdvert tells when the last advert of a group left this router and the
// interval it announced. Last is CLOCK_MONOTONIC, 0 when none ever left or the
// last one resigned.
func (d *Dataplane) OwnAdvert(group uint32) (last, interval time.Duration, err error) {
	var own bpf.DataplaneOwnAdvert
	if err := d.maps.OwnAdverts.Lookup(group, &own); err != nil {
		return 0, 0, fmt.Errorf("read own adverts of group %d: %w", group, err)
	}
	return time.Duration(own.LastNs), time.Duration(own.IntervalNs), nil
}
