// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"net/http"

	"vippin/policy"
)

// Notify takes what a transition script tells of VRRP.
func (d *daemon) Notify(context.Context, policy.Notification) error {
	return errors.New("not known yet")
}

func (s *server) notify(w http.ResponseWriter, r *http.Request) {
	s.fail(w, errors.New("not known yet"))
}
