// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// ChurnPlan is new UDP flows, one request each: every source port to every port
// of the server from ChurnPort on.
type ChurnPlan struct {
	Local, Server netip.Addr
	First         int // running number of the first flow: continue where another churn ended
	Flows         int
	Ports         int // of the server
	Rate          int // flows a second; 0 = as fast as it goes
}

// Churned is what became of it.
type Churned struct {
	Sent int
	Took time.Duration
}

// ChurnPorts are the ports a server needs for a churn.
func ChurnPorts(count int) []uint16 {
	ports := make([]uint16, count)
	for i := range ports {
		ports[i] = uint16(ChurnPort + i)
	}
	return ports
}

// churn sends one request of every flow.
func churn(plan ChurnPlan) (result Churned, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	message := make([]byte, recordLen)
	start := time.Now()
	fd, port := -1, -1
	defer func() { unix.Close(fd) }()
	for i := range plan.Flows {
		n := plan.First + i
		if source := n / plan.Ports; source != port {
			unix.Close(fd)
			if fd, err = socket(unix.SOCK_DGRAM, 0, plan.Local, uint16(firstPort/2+source)); err != nil {
				return result, fmt.Errorf("open a socket for new flows: %w", err)
			}
			port = source
		}
		if plan.Rate > 0 {
			due := start.Add(time.Duration(float64(i) / float64(plan.Rate) * float64(time.Second)))
			if wait := time.Until(due); wait > time.Millisecond {
				pause := unix.NsecToTimespec(int64(wait))
				_ = unix.Nanosleep(&pause, nil)
			}
		}
		record{proto: UDP, id: uint32(n) | decoyID}.put(message)
		if unix.Sendto(fd, message, 0, sockaddr(plan.Server, uint16(ChurnPort+n%plan.Ports))) == nil {
			result.Sent++
		}
	}
	result.Took = time.Since(start)
	return result, nil
}
