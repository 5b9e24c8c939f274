// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"slices"
)

// quantile is the smallest value that at least the share q of all values does
// not exceed; NaN of none.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(len(sorted)-1, max(0, int(math.Ceil(q*float64(len(sorted))))-1))]
}

// median is the middle value, or the mean of the two in the middle.
func median(values []float64) float64 {
	n := len(values)
	if n == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// spread is how far the values are apart, as a share of their median.
func spread(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	return (slices.Max(values) - slices.Min(values)) / median(values)
}

// share is a percentage that is 100 only if nothing is missing: cut off after
// the second decimal, not rounded.
func share(part, whole int) float64 {
	if whole == 0 {
		return math.NaN()
	}
	return math.Floor(float64(part)/float64(whole)*1e4) / 100
}
