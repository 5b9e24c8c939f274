// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"unicode"

	"vippin/policy"
)

// What a transition script may say of which kind of thing.
var (
	notifyKinds  = []string{"GROUP", "INSTANCE"}
	notifyStates = []string{"MASTER", "BACKUP", "FAULT", "STOP"}
)

// notifyNameMax bounds a name, in octets. keepalived's and ours are shorter.
const notifyNameMax = 255

// checkNotification refuses what no transition script says.
func checkNotification(n policy.Notification) error {
	switch {
	case !slices.Contains(notifyKinds, n.Kind):
		return usageError{fmt.Errorf("unknown kind %q (one of %s)", n.Kind, strings.Join(notifyKinds, ", "))}
	case !slices.Contains(notifyStates, n.State):
		return usageError{fmt.Errorf("unknown state %q (one of %s)", n.State, strings.Join(notifyStates, ", "))}
	case n.Name == "":
		return usageError{fmt.Errorf("no name of a %s", strings.ToLower(n.Kind))}
	case len(n.Name) > notifyNameMax || strings.ContainsFunc(n.Name, unicode.IsControl):
		return usageError{fmt.Errorf("name %.40q… is too long, or has control characters", n.Name)}
	}
	return nil
}

// unknownGroupError names a group that there is not.
type unknownGroupError struct {
	Group string
	Known []string
}

func (e *unknownGroupError) Error() string {
	return fmt.Sprintf("unknown group %q (there are: %s)", e.Group, strings.Join(e.Known, ", "))
}

// Notify takes what a transition script tells of VRRP. It counts as a line of
// keepalived's FIFO does. Of instances that are no group here scripts tell too,
// since keepalived knows no difference: those are nobody's witness.
func (d *daemon) Notify(ctx context.Context, n policy.Notification) error {
	var known []string
	if err := d.ask(ctx, func() {
		for _, group := range d.state.plan.Groups {
			known = append(known, group.Name)
		}
	}); err != nil {
		return err
	}
	if n.Kind == "GROUP" && !slices.Contains(known, n.Name) {
		return &unknownGroupError{Group: n.Name, Known: known}
	}
	select {
	case d.notices <- fifoNotice{Kind: n.Kind, Name: n.Name, State: n.State, Priority: n.Priority, Script: true}:
		return d.ask(ctx, func() {}) // behind it, more likely than not
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// noticed tells the tracker what keepalived said.
func (d *daemon) noticed(n fifoNotice) {
	tell := d.state.tracker.FIFO
	if n.Script {
		tell = d.state.tracker.Script
	}
	d.decided(tell(d.env.monotonic(), n.Kind, n.Name, n.State, n.Priority))
}

func (s *server) notify(w http.ResponseWriter, r *http.Request) {
	if err := s.access.mayChange(r.Context()); err != nil {
		s.fail(w, err)
		return
	}
	var n policy.Notification
	err := s.decode(w, r, &n)
	if err != nil {
		err = usageError{fmt.Errorf("read request: %w", err)}
	} else {
		err = checkNotification(n)
	}
	if err == nil {
		err = s.control.Notify(r.Context(), n)
	}
	var unknown *unknownGroupError
	switch {
	case errors.As(err, &unknown):
		s.answer(w, http.StatusNotFound, failure{Error: err.Error()})
	case err != nil:
		s.fail(w, err)
	default:
		s.answer(w, http.StatusOK, struct{}{})
	}
}
