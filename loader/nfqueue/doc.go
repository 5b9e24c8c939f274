// SPDX-License-Identifier: Apache-2.0

// Package nfqueue takes packets out of an NFQUEUE of the kernel and gives them
// back with a verdict, from any goroutine and in any order. It is what we need of
// github.com/florianl/go-nfqueue, in its shape.
package nfqueue
