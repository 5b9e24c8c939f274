// SPDX-License-Identifier: Apache-2.0

package bench

import "time"

// Progress is how far a run is.
type Progress struct {
	What string
	Done float64       // share, 0 to 1
	Left time.Duration // as it looks; 0: nobody knows yet
}

// journey turns guesses of how long each part takes into how long all will take.
type journey struct {
	tell          func(Progress)
	begun         time.Time
	planned, gone float64 // seconds, as guessed
	what          string
}

func (j *journey) plan(seconds float64) { j.planned += seconds }

func (j *journey) at(what string) {
	j.what = what
	j.done(0)
}

func (j *journey) done(seconds float64) {
	if j.begun.IsZero() {
		j.begun = time.Now()
	}
	j.gone += seconds
	p := Progress{What: j.what, Done: min(j.gone/j.planned, 1)}
	if p.Done > 0 {
		p.Left = time.Duration(float64(time.Since(j.begun)) * (1 - p.Done) / p.Done)
	}
	j.tell(p)
}
