// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"maps"
	"time"
)

// Stats is how a session does.
type Stats struct {
	Version        uint32 // in use, 0 before the peer's hello
	Peer           Hello
	Lag            int           // entries waiting or unacknowledged
	Age            time.Duration // of the oldest of them
	Acknowledged   uint64        // flows and gones that the peer has dealt with, refused ones among them
	Lost           uint64        // times that the queue ran over
	Dropped        uint64        // entries that were dropped with it
	Invalid        uint64        // entries of ours that make no sense, not sent
	Unnamed        uint64        // flows of ours whose pin or group is not in State, not sent
	Ignored        uint64        // frames of kinds that this version does not know
	Sent, Received Traffic
}

// Traffic is what went one way.
type Traffic struct {
	Bytes, Batches, Flows, Gones, Expectations uint64
	Refused                                    map[Reason]uint64 // of the flows
	Bulk                                       Bulk
}

// Bulk is how far the latest bulk is.
type Bulk struct {
	Running bool
	Done    bool   // acknowledged to its end, or received to its end
	Flows   uint64 // so far; of a bulk received all flows since it began, new ones among them
	Total   uint64 // 0 = unknown
}

func newTraffic() Traffic { return Traffic{Refused: map[Reason]uint64{}} }

// Stats tells how the session does, also after it has ended.
func (s *Session) Stats() Stats {
	now := s.config.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := s.stats
	stats.Lag, stats.Age = s.queue.len(), s.queue.age(now)
	stats.Sent.Refused = maps.Clone(stats.Sent.Refused)
	stats.Received.Refused = maps.Clone(stats.Received.Refused)
	return stats
}
