// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"path/filepath"

	"golang.org/x/sys/unix"

	"vippin/policy"
)

// errNoDaemon: nobody listens on run_dir's control socket.
var errNoDaemon = errors.New("no daemon runs")

// remoteError is what the daemon answered instead of doing it.
type remoteError struct {
	Code int // HTTP status
	failure
}

func (e *remoteError) Error() string { return e.failure.Error }

// maxLine bounds one answer, or one line of a stream.
const maxLine = 64 << 20

// client is the command line's end of the control socket.
type client struct {
	path string
	http *http.Client
}

func newClient(e *env, runDir string) *client {
	path := filepath.Join(runDir, socketName)
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return e.dial(ctx, path)
		},
		DisableKeepAlives:     true, // a verb asks once
		ResponseHeaderTimeout: 3 * answerWithin,
	}
	return &client{path: path, http: &http.Client{Transport: transport}}
}

func (c *client) Status(ctx context.Context) (status policy.Status, err error) {
	return status, c.get(ctx, "status", &status)
}

func (c *client) Pins(ctx context.Context) (pins []policy.PinStatus, err error) {
	return pins, c.get(ctx, "pins", &pins)
}

func (c *client) VRRP(ctx context.Context) (routers []policy.VRRPStatus, err error) {
	return routers, c.get(ctx, "vrrp", &routers)
}

func (c *client) Peers(ctx context.Context) (peers []policy.PeerReport, err error) {
	return peers, c.get(ctx, "peers", &peers)
}

func (c *client) Ready(ctx context.Context) (groups []policy.ReadyStatus, err error) {
	return groups, c.get(ctx, "ready", &groups)
}

func (c *client) Failovers(ctx context.Context) (records []policy.Failover, err error) {
	return records, c.get(ctx, "failovers", &records)
}

func (c *client) Parity(ctx context.Context) (differences []policy.Difference, err error) {
	return differences, c.get(ctx, "parity", &differences)
}

func (c *client) Rehearse(ctx context.Context) (rehearsals []policy.Rehearsal, err error) {
	return rehearsals, c.do(ctx, http.MethodPost, "rehearse", nil, &rehearsals)
}

func (c *client) Fastpath(ctx context.Context) (state policy.FastpathState, err error) {
	return state, c.get(ctx, "fastpath", &state)
}

func (c *client) SwitchFastpath(ctx context.Context, action toggleAction) (state policy.FastpathState, err error) {
	return state, c.do(ctx, http.MethodPost, "fastpath/"+string(action), nil, &state)
}

func (c *client) Notify(ctx context.Context, n policy.Notification) error {
	var done struct{}
	return c.do(ctx, http.MethodPost, "notify", n, &done)
}

// Toggle returns *unknownPinsError when some VLANs have no pin, usageError
// when the daemon cannot read the list.
func (c *client) Toggle(ctx context.Context, action toggleAction, vlans string) (pins []policy.PinState, err error) {
	err = c.do(ctx, http.MethodPost, "pins/"+string(action), toggleRequest{VLANs: vlans}, &pins)
	var remote *remoteError
	if errors.As(err, &remote) {
		switch {
		case len(remote.Unknown) > 0:
			return nil, &unknownPinsError{Unknown: remote.Unknown}
		case remote.Code == http.StatusBadRequest:
			return nil, usageError{err}
		}
	}
	return pins, err
}

// Reload returns a report with OK false when the configuration has errors.
func (c *client) Reload(ctx context.Context) (report policy.DryRun, err error) {
	response, err := c.send(ctx, http.MethodPost, "reload", nil)
	if err != nil {
		return report, err
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusUnprocessableEntity {
		return report, c.decode(response, &report)
	}
	return report, c.result(response, &report)
}

// Flows calls yield for every flow; an error of yield ends it.
func (c *client) Flows(ctx context.Context, yield func(policy.FlowStatus) error) error {
	whole := false
	err := c.stream(ctx, "flows", func(line []byte) error {
		if bytes.Equal(line, []byte("{}")) {
			whole = true
			return nil
		}
		var flow struct {
			policy.FlowStatus
			Error string `json:"error"`
		}
		if err := json.Unmarshal(line, &flow); err != nil {
			return fmt.Errorf("read a flow from the daemon: %w", err)
		}
		if flow.Error != "" {
			return errors.New(flow.Error)
		}
		return yield(flow.FlowStatus)
	})
	if err == nil && !whole {
		return errors.New("the daemon ended before the list of flows was whole: try again")
	}
	return err
}

// Events calls yield for every event until ctx ends (nil) or the daemon leaves.
func (c *client) Events(ctx context.Context, yield func(policy.Event) error) error {
	err := c.stream(ctx, "events", func(line []byte) error {
		var event policy.Event
		if err := json.Unmarshal(line, &event); err != nil {
			return fmt.Errorf("read an event from the daemon: %w", err)
		}
		return yield(event)
	})
	switch {
	case ctx.Err() != nil:
		return nil
	case err == nil, errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the daemon has ended")
	}
	return err
}

func (c *client) get(ctx context.Context, what string, into any) error {
	return c.do(ctx, http.MethodGet, what, nil, into)
}

func (c *client) do(ctx context.Context, method, what string, request, into any) error {
	response, err := c.send(ctx, method, what, request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	return c.result(response, into)
}

// send returns errNoDaemon (wrapped) when nobody listens.
func (c *client) send(ctx context.Context, method, what string, request any) (*http.Response, error) {
	var body io.Reader
	if request != nil {
		text, err := json.Marshal(request)
		if err != nil {
			return nil, fmt.Errorf("write request: %w", err)
		}
		body = bytes.NewReader(text)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://vippin/v1/"+what, body)
	if err != nil {
		return nil, fmt.Errorf("write request: %w", err)
	}
	response, err := c.http.Do(r)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, fmt.Errorf("%w: nobody listens at %s (start it with \"vippin run\")", errNoDaemon, c.path)
	}
	if err != nil {
		return nil, fmt.Errorf("ask the daemon at %s: %w", c.path, errors.Unwrap(err))
	}
	return response, nil
}

// result decodes a 2xx answer, and makes a *remoteError of any other.
func (c *client) result(response *http.Response, into any) error {
	if response.StatusCode/100 == 2 {
		return c.decode(response, into)
	}
	remote := &remoteError{Code: response.StatusCode}
	if err := c.decode(response, &remote.failure); err != nil || remote.failure.Error == "" {
		remote.failure.Error = fmt.Sprintf("the daemon at %s answers %s: is it another version?", c.path, response.Status)
	}
	return remote
}

func (c *client) decode(response *http.Response, into any) error {
	if err := json.NewDecoder(io.LimitReader(response.Body, maxLine)).Decode(into); err != nil {
		return fmt.Errorf("read the daemon's answer: %w", err)
	}
	return nil
}

func (c *client) stream(ctx context.Context, what string, yield func(line []byte) error) error {
	response, err := c.send(ctx, http.MethodGet, what, nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return c.result(response, nil)
	}
	scanner := bufio.NewScanner(response.Body)
	scanner.Buffer(make([]byte, 0, 64<<10), 1<<20)
	for scanner.Scan() {
		if err := yield(scanner.Bytes()); err != nil {
			return err
		}
	}
	return scanner.Err()
}
