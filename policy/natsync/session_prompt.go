// SPDX-License-Identifier: Apache-2.0

package natsync

// SetPrompt says whether somebody waits for the peer's acknowledgements: then
// nothing gathers before it is written, the peer is asked to do the same with its
// acknowledgements, and the handler is told of each flow that the peer has taken
// (those of batches that go out from now on). A peer that does not know of it gathers
// as ever.
func (s *Session) SetPrompt(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.prompt == on {
		return
	}
	s.prompt, s.queue.keep, s.stateDue = on, on, true
	poke(s.wake)
	poke(s.hurry)
}

func (s *Session) isPrompt() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.prompt
}

// peerPrompt notes whether the peer waits for acknowledgements.
func (s *Session) peerPrompt(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = on
}
