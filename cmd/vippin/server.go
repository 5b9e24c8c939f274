// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"vippin/policy"
)

// controller is what the control socket shows and changes: the daemon.
type controller interface {
	Status(ctx context.Context) (policy.Status, error)
	Pins(ctx context.Context) ([]policy.PinStatus, error)
	VRRP(ctx context.Context) ([]policy.VRRPStatus, error)
	// Peers is in the order of the configuration.
	Peers(ctx context.Context) ([]policy.PeerReport, error)
	// Flows stops at the first error of yield and returns it.
	Flows(ctx context.Context, yield func(policy.FlowStatus) error) error
	// Events never blocks the daemon (see eventHub); closed after ctx's end.
	Events(ctx context.Context) <-chan policy.Event
	// Toggle switches the selected pins, all or none of them, and returns
	// their new state. *unknownPinsError: some have no pin.
	Toggle(ctx context.Context, action toggleAction, selectors []policy.Selector) ([]policy.PinState, error)
	// Reload applies the changed configuration, whole or not at all: with
	// errors in it, OK is false and nothing has changed.
	Reload(ctx context.Context) (policy.DryRun, error)
	// Ready is in the order of the plan.
	Ready(ctx context.Context) ([]policy.ReadyStatus, error)
	// Failovers is in order of time, the latest last.
	Failovers(ctx context.Context) ([]policy.Failover, error)
	// Parity is worst first.
	Parity(ctx context.Context) ([]policy.Difference, error)
	// Rehearse tries every peer's table.
	Rehearse(ctx context.Context) ([]policy.Rehearsal, error)
	Fastpath(ctx context.Context) (policy.FastpathState, error)
	// SwitchFastpath returns what it is then; switching what is so already is no
	// error.
	SwitchFastpath(ctx context.Context, action toggleAction) (policy.FastpathState, error)
	// Notify takes what a transition script tells.
	Notify(ctx context.Context, n policy.Notification) error
}

const (
	maxRequestBody = 64 << 10
	answerWithin   = 10 * time.Second // for one answer, or one line of a stream
	shutdownWithin = 2 * time.Second
)

// server is the daemon's end of the control socket.
type server struct {
	control controller
	access  access
	log     *slog.Logger
}

// listenControl opens run_dir's control socket. The caller holds run_dir's
// lock, so a socket that lies there belongs to a dead daemon. Everyone may
// connect: who may change things is asked per request.
func listenControl(runDir string) (net.Listener, error) {
	path := filepath.Join(runDir, socketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove the control socket of a dead daemon: %w", err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("open control socket: %w", err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		listener.Close()
		return nil, fmt.Errorf("let everyone look through the control socket: %w", err)
	}
	return listener, nil
}

// Serve answers until ctx ends, then closes the listener (which removes the
// socket file) and ends the streams.
func (s *server) Serve(ctx context.Context, listener net.Listener) error {
	srv := &http.Server{
		Handler:           s.routes(),
		ReadHeaderTimeout: answerWithin,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, callerKey{}, callerOf(conn))
		},
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		deadline, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownWithin)
		defer cancel()
		if srv.Shutdown(deadline) != nil {
			srv.Close()
		}
	})
	err := srv.Serve(listener)
	if !stop() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve control socket: %w", err)
}

func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", show(s, s.control.Status))
	mux.HandleFunc("GET /v1/pins", show(s, s.control.Pins))
	mux.HandleFunc("GET /v1/vrrp", show(s, s.control.VRRP))
	mux.HandleFunc("GET /v1/peers", show(s, s.control.Peers))
	mux.HandleFunc("GET /v1/flows", s.flows)
	mux.HandleFunc("GET /v1/events", s.events)
	mux.HandleFunc("POST /v1/pins/{action}", s.toggle)
	mux.HandleFunc("POST /v1/reload", s.reload)
	mux.HandleFunc("GET /v1/ready", show(s, s.control.Ready))
	mux.HandleFunc("GET /v1/failovers", show(s, s.control.Failovers))
	mux.HandleFunc("GET /v1/parity", show(s, s.control.Parity))
	mux.HandleFunc("POST /v1/rehearse", s.rehearse)
	mux.HandleFunc("POST /v1/notify", s.notify)
	mux.HandleFunc("GET /v1/fastpath", show(s, s.control.Fastpath))
	mux.HandleFunc("POST /v1/fastpath/{action}", s.switchFastpath)
	return mux
}

// show answers with whatever ask returns.
func show[T any](s *server, ask func(context.Context) (T, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		answer, err := ask(r.Context())
		if err != nil {
			s.fail(w, err)
			return
		}
		s.answer(w, http.StatusOK, answer)
	}
}

func (s *server) answer(w http.ResponseWriter, code int, answer any) {
	s.within(w)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(answer); err != nil {
		s.log.Debug("answer on control socket", "error", err)
	}
}

// within gives a reader of the next answer a deadline.
func (s *server) within(w http.ResponseWriter) {
	if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerWithin)); err != nil {
		s.log.Debug("set deadline on control socket", "error", err)
	}
}

// failure is the body of every answer that is not 2xx.
type failure struct {
	Error   string   `json:"error"`
	Unknown []string `json:"unknown,omitempty"` // VLANs without a pin
}

func (s *server) fail(w http.ResponseWriter, err error) {
	body := failure{Error: err.Error()}
	code := http.StatusInternalServerError
	var unknown *unknownPinsError
	var usage usageError
	var denied *deniedError
	switch {
	case errors.As(err, &unknown):
		code, body.Unknown = http.StatusNotFound, unknown.Unknown
	case errors.As(err, &usage):
		code = http.StatusBadRequest
	case errors.As(err, &denied):
		code = http.StatusForbidden
	}
	s.answer(w, code, body)
}

type toggleRequest struct {
	VLANs string `json:"vlans"`
}

// mayToggle reads what is to be done, and answers where it is nothing that is known,
// or not for whoever asks.
func (s *server) mayToggle(w http.ResponseWriter, r *http.Request) (action toggleAction, ok bool) {
	action, err := parseToggleAction(r.PathValue("action"))
	if err != nil {
		s.answer(w, http.StatusNotFound, failure{Error: err.Error()})
		return action, false
	}
	if err := s.access.mayChange(r.Context()); err != nil {
		s.fail(w, err)
		return action, false
	}
	return action, true
}

func (s *server) toggle(w http.ResponseWriter, r *http.Request) {
	action, ok := s.mayToggle(w, r)
	if !ok {
		return
	}
	var request toggleRequest
	if err := s.decode(w, r, &request); err != nil {
		s.fail(w, usageError{fmt.Errorf("read request: %w", err)})
		return
	}
	selectors, err := policy.ParseSelectors(request.VLANs)
	if err != nil {
		s.fail(w, usageError{err})
		return
	}
	pins, err := s.control.Toggle(r.Context(), action, selectors)
	if err != nil {
		s.fail(w, err)
		return
	}
	s.answer(w, http.StatusOK, pins)
}

func (s *server) switchFastpath(w http.ResponseWriter, r *http.Request) {
	action, ok := s.mayToggle(w, r)
	if !ok {
		return
	}
	state, err := s.control.SwitchFastpath(r.Context(), action)
	if err != nil {
		s.fail(w, err)
		return
	}
	s.answer(w, http.StatusOK, state)
}

// decode reads one bounded JSON value and nothing after it.
func (s *server) decode(w http.ResponseWriter, r *http.Request, into any) error {
	connection := http.NewResponseController(w)
	if err := connection.SetReadDeadline(time.Now().Add(answerWithin)); err != nil {
		return err
	}
	// Left set, it would cancel a request that takes longer to do.
	defer connection.SetReadDeadline(time.Time{})
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequestBody))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON value")
	}
	return nil
}

func (s *server) reload(w http.ResponseWriter, r *http.Request) {
	if err := s.access.mayChange(r.Context()); err != nil {
		s.fail(w, err)
		return
	}
	report, err := s.control.Reload(r.Context())
	if err != nil {
		s.fail(w, err)
		return
	}
	code := http.StatusOK
	if !report.OK {
		code = http.StatusUnprocessableEntity
	}
	s.answer(w, code, report)
}
