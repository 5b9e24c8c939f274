// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"net/http"

	"vippin/policy"
)

// Rehearse tries the peers' tables in a scratch namespace.
func (d *daemon) Rehearse(context.Context) ([]policy.Rehearsal, error) {
	return nil, errors.New("not known yet")
}

func (s *server) rehearse(w http.ResponseWriter, r *http.Request) {
	s.fail(w, errors.New("not known yet"))
}
