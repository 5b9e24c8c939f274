// SPDX-License-Identifier: Apache-2.0

package loader

// The numbers of bpf/types.h.
const (
	mappingNative = 1 << 0
	mappingAcked  = 1 << 1

	pinUsed    = 1 << 0
	pinEnabled = 1 << 1
	pinToggled = 1 << 2
	pinRetired = 1 << 3
	pinHeld    = 1 << 31 // user space's own: its living flows are not noted yet

	maxPins   = 4096
	maxGroups = 4096
)

const (
	pinPinned = iota
	pinReturned
	pinCreated
	pinVIPWhileBackup
	pinForeign
	pinClash
	pinOff
	pinBackup
	pinStaleRole
	pinBornBefore
	pinNoVIP
	pinSource
	pinHelper
	pinFull
	pinNoPort
	pinNoConntrack
	pinFragment
	pinError
	pinCounters
)

const (
	vrrpRingFull = 8
	vrrpCounters = 9
)
