// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"net/http"

	"vippin/policy"
)

// lines is an answer of one JSON value a line. A reader that stops reading
// ends its own stream after answerWithin, nobody else's.
type lines struct {
	s       *server
	w       http.ResponseWriter
	encoder *json.Encoder
	count   int
}

func (s *server) lines(w http.ResponseWriter) *lines {
	w.Header().Set("Content-Type", "application/x-ndjson")
	return &lines{s: s, w: w, encoder: json.NewEncoder(w)}
}

func (l *lines) write(value any) error {
	if l.count%64 == 0 { // a deadline costs more than a line
		l.s.within(l.w)
	}
	l.count++
	return l.encoder.Encode(value)
}

func (l *lines) flush() error {
	return http.NewResponseController(l.w).Flush()
}

// flows ends with an empty object: without it the reader knows that the list
// is cut.
func (s *server) flows(w http.ResponseWriter, r *http.Request) {
	out := s.lines(w)
	err := s.control.Flows(r.Context(), func(flow policy.FlowStatus) error {
		return out.write(flow)
	})
	switch {
	case err != nil && out.count == 0:
		s.fail(w, err)
		return
	case err != nil:
		_ = out.write(failure{Error: err.Error()})
		return
	}
	if err := out.write(struct{}{}); err != nil {
		s.log.Debug("stream flows on control socket", "error", err)
	}
}

// events goes on until the reader or the daemon leaves.
func (s *server) events(w http.ResponseWriter, r *http.Request) {
	events := s.control.Events(r.Context())
	out := s.lines(w)
	w.WriteHeader(http.StatusOK)
	s.within(w)
	if out.flush() != nil {
		return
	}
	for event := range events {
		s.within(w)
		if out.write(event) != nil || out.flush() != nil {
			return
		}
	}
}
