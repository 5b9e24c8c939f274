// SPDX-License-Identifier: Apache-2.0

// Package order is what the host and the first process of the emulated machine
// tell each other: the order goes in as a JSON file of the initramfs, the report
// comes back as JSON lines through a virtio serial port.
package order

import "time"

// Where things stand in the initramfs, and how the ports are called.
const (
	Path       = "/order.json"
	ModuleDir  = "/modules"
	MountTag   = "host"          // 9p, the host's root
	OutputPort = "vippin.output" // the command's standard output and error
	ReportPort = "vippin.report"
)

// Order says what to do in the machine.
type Order struct {
	Modules       []string // file names below ModuleDir, in loading order
	Release       string   // what uname -r says
	KernelModules string   // host path of lib/modules/RELEASE
	Keep          []string // host folders that must be seen although they are below /tmp or /run
	Command       []string // found in PATH
	Dir           string   // working directory
	Env           []string // KEY=value, besides PATH, HOME and TERM
}

// Event is what a report tells of.
type Event string

// In this order; Failed may come instead of either.
const (
	Started Event = "started" // the machine is ready, the command starts
	Exited  Event = "exited"  // the command ended with ExitCode
	Failed  Event = "failed"  // the machine could not be made ready, or the command not started
)

// Report is one line on ReportPort.
type Report struct {
	Event    Event         `json:"event"`
	ExitCode int           `json:"exit_code"` // 128 + n when signal n ended it, as a shell has it
	Detail   string        `json:"detail,omitempty"`
	Uptime   time.Duration `json:"uptime,omitempty"` // of Started: in ns, by the machine's clock
}
