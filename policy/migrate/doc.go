// SPDX-License-Identifier: Apache-2.0

// Package migrate turns the configuration of conntrackd and keepalived, or
// VyOS's commands, into one of vippin's: text in, text out. What a setting
// becomes, or why it becomes nothing, is written down in the files *_words.go.
package migrate
