// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
)

// notifier tells systemd how the daemon is (sd_notify(3)). Without systemd it
// says nothing; a lost notice is logged, it is never worth failing for.
type notifier struct{ log *slog.Logger }

// Ready ends both the start and a reload; status is shown by systemctl.
func (n notifier) Ready(status string) {
	n.send(systemd.SdNotifyReady + "\nSTATUS=" + status)
}

// Reloading begins a reload (Type=notify-reload wants the time of it).
func (n notifier) Reloading() {
	n.send(systemd.SdNotifyReloading + "\n" + systemd.SdNotifyMonotonicUsec())
}

// Stopping begins the end.
func (n notifier) Stopping() { n.send(systemd.SdNotifyStopping) }

func (n notifier) send(state string) {
	if _, err := systemd.SdNotify(false, state); err != nil {
		n.log.Warn("notify systemd", "error", err)
	}
}

// Watchdog pats systemd's watchdog (WatchdogSec=) twice per period for as long
// as healthy returns nil, until ctx ends. healthy should go through the
// daemon's main loop: a watchdog that only proves itself alive proves nothing.
func (n notifier) Watchdog(ctx context.Context, healthy func(context.Context) error) error {
	period, err := systemd.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("read systemd's watchdog period: %w", err)
	}
	if period == 0 {
		<-ctx.Done()
		return nil
	}
	ticker := time.NewTicker(period / 2)
	defer ticker.Stop()
	for {
		within, cancel := context.WithTimeout(ctx, period/2)
		err := healthy(within)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			n.log.Error("watchdog: the daemon is stuck, systemd will restart it", "error", err)
		default:
			n.send(systemd.SdNotifyWatchdog)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}
