// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// caller is the process at the other end of a control connection, as the kernel
// says (SO_PEERCRED, unix(7)): the credentials it had when it connected.
type caller struct {
	pid      int32
	uid, gid uint32
	err      error // why nobody knows
}

type callerKey struct{}

func callerOf(conn net.Conn) caller {
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return caller{err: errors.New("not a unix socket")}
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return caller{err: err}
	}
	var cred *unix.Ucred
	controlErr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(controlErr, err); err != nil {
		return caller{err: err}
	}
	return caller{pid: cred.Pid, uid: cred.Uid, gid: cred.Gid}
}

// accounts looks users and groups up; os/user outside tests.
type accounts interface {
	GroupID(name string) (gid string, err error)
	GroupsOf(uid string) (gids []string, err error)
	UserName(uid string) string
}

// access decides who may change things: root, the daemon's own user, and the
// members of control.group.
type access struct {
	self     uint32
	group    func() string // control.group; it may change with a reload; "" = none
	accounts accounts
}

// deniedError is a refused change.
type deniedError struct{ who, group string }

func (e *deniedError) Error() string {
	if e.group == "" {
		return fmt.Sprintf("user %s may look but not change anything: use root, or name a group in control.group", e.who)
	}
	return fmt.Sprintf("user %s may look but not change anything: use root or a member of group %s (control.group)", e.who, e.group)
}

// mayChange returns nil or a *deniedError for the peer of this request.
func (a access) mayChange(ctx context.Context) error {
	p, _ := ctx.Value(callerKey{}).(caller)
	if p.err != nil {
		return fmt.Errorf("ask the kernel who is at the other end of the control socket: %w", p.err)
	}
	if p.pid == 0 { // the zero value would be root
		return errors.New("the kernel does not know who is at the other end of the control socket")
	}
	if p.uid == 0 || p.uid == a.self || a.member(p) {
		return nil
	}
	return &deniedError{who: a.accounts.UserName(strconv.FormatUint(uint64(p.uid), 10)), group: a.group()}
}

// member says whether the peer is in control.group, by the group it runs with
// or by the account's list. A group or user nobody knows has no members.
func (a access) member(p caller) bool {
	name := a.group()
	if name == "" {
		return false
	}
	want, err := a.accounts.GroupID(name)
	if err != nil {
		return false
	}
	if strconv.FormatUint(uint64(p.gid), 10) == want {
		return true
	}
	have, err := a.accounts.GroupsOf(strconv.FormatUint(uint64(p.uid), 10))
	return err == nil && slices.Contains(have, want)
}

// systemAccounts asks os/user.
type systemAccounts struct{}

func (systemAccounts) GroupID(name string) (string, error) {
	group, err := user.LookupGroup(name)
	if err != nil {
		return "", err
	}
	return group.Gid, nil
}

func (systemAccounts) GroupsOf(uid string) ([]string, error) {
	account, err := user.LookupId(uid)
	if err != nil {
		return nil, err
	}
	return account.GroupIds()
}

func (systemAccounts) UserName(uid string) string {
	if account, err := user.LookupId(uid); err == nil {
		return account.Username
	}
	return uid
}

// newAccess asks the system's accounts who is in group.
func newAccess(group string) access {
	return access{
		self: uint32(os.Geteuid()), group: func() string { return group }, accounts: systemAccounts{},
	}
}
