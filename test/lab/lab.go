// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"sync"
)

// Lab is a running network. Its methods may be used from several goroutines.
type Lab struct {
	Name    string
	Options Options
	Dir     string // temporary: logs, keepalived's and vippin's files, a folder for each router

	LANSwitch, WANSwitch *Node
	Hosts                []*Node // h1, h2 …, interface eth0
	RA, RB               *Router // RB is nil with SingleRouter
	RC                   *Router // with Options.ThirdRouter
	Server               *Node   // interface eth0; eth1 on WAN1
	Transit, BeyondHost  *Node   // with Options.Transit: eth0 on the WAN, eth1 to BeyondHost's eth0
	Inside, DeepHost     *Node   // with Options.Inside: eth0 on the LAN, eth1 to DeepHost's eth0

	syncLink bool          // there is one
	spawn    chan func()   // runs on the one thread that starts processes
	quit     chan struct{} // closed by Close
	spawning chan struct{} // closed when that thread starts nothing more
	building sync.Mutex    // held during each step of build

	mu     sync.Mutex
	nodes  []*Node
	procs  []*Proc
	blocks []block
	closed bool
}

// Router is one of the two routers.
type Router struct {
	*Node
	Dir     string // below Lab.Dir
	BPFFS   string // vippin's own bpffs folder
	segment func(Segment) Ends

	keepalived *Proc // these are guarded by Lab.mu
	only4      bool  // keepalived moves no IPv6 VIPs
	vippin     *Proc
}

// Own returns the router's own (unique) addresses on a segment.
func (r *Router) Own(s Segment) Ends { return r.segment(s) }

var goodName = regexp.MustCompile(`^[a-z0-9]{1,16}$`)

// Root says why a lab cannot be built here, nil if it can.
func Root() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("building network namespaces needs root (run it with sudo)")
	}
	return nil
}

// New builds a lab; name tells several labs of one process apart (lower-case
// letters and digits). keepalived and vippin are started by the caller. What
// was built is removed again when it fails or ctx ends.
func New(ctx context.Context, name string, opts Options) (*Lab, error) {
	if err := Root(); err != nil {
		return nil, err
	}
	if !goodName.MatchString(name) {
		return nil, fmt.Errorf("name a lab %q: 1 to 16 lower-case letters and digits", name)
	}
	dir, err := os.MkdirTemp("", prefix()+name+"-")
	if err != nil {
		return nil, fmt.Errorf("make the lab's folder: %w", err)
	}
	l := &Lab{Name: name, Options: opts.withDefaults(), Dir: dir,
		spawn: make(chan func()), quit: make(chan struct{}), spawning: make(chan struct{})}
	go l.spawner()
	register(l)
	if err := l.build(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("build lab %s: %w", name, err), l.Close())
	}
	return l, nil
}

// prefix begins the names of everything this process makes.
func prefix() string { return fmt.Sprintf("vp%d-", os.Getpid()) }

// spawner owns the thread that starts processes. They get SIGKILL when it ends.
func (l *Lab) spawner() {
	defer close(l.spawning)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for {
		select {
		case start := <-l.spawn:
			start()
		case <-l.quit:
			return
		}
	}
}

// onSpawner calls start on the spawner's thread.
func (l *Lab) onSpawner(start func() error) error {
	result := make(chan error, 1)
	select {
	case l.spawn <- func() { result <- start() }:
		return <-result
	case <-l.quit:
		return errClosed
	}
}

func (l *Lab) build(ctx context.Context) error {
	steps := []func() error{
		l.addSwitches, l.addServer, l.addRouters, l.addHosts, l.addTransit, l.addInside, l.setOffloads, l.setFastpath, l.addRules,
	}
	for _, step := range steps {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := l.buildStep(step); err != nil {
			return err
		}
	}
	return l.awaitLinks(ctx)
}

// buildStep keeps Close, which a signal may call at any time, from missing
// what the step is making.
func (l *Lab) buildStep(step func() error) error {
	l.building.Lock()
	defer l.building.Unlock()
	l.mu.Lock()
	closed := l.closed
	l.mu.Unlock()
	if closed {
		return errClosed
	}
	return step()
}

var errClosed = errors.New("the lab is closed")

// Routers lists the routers there are.
func (l *Lab) Routers() []*Router {
	var routers []*Router
	for _, r := range []*Router{l.RA, l.RB, l.RC} {
		if r != nil {
			routers = append(routers, r)
		}
	}
	return routers
}

// Segments lists the networks that the routers are on.
func (l *Lab) Segments() []Segment {
	if l.Options.WAN1 {
		return []Segment{LAN, WAN, WAN1}
	}
	return []Segment{LAN, WAN}
}

// Close kills every process of the lab and removes its namespaces, bpffs
// folders and files. Calling it again does nothing.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	l.mu.Unlock()
	defer unregister(l)
	l.building.Lock()
	defer l.building.Unlock()
	close(l.quit)
	<-l.spawning
	l.mu.Lock()
	procs, nodes := l.procs, l.nodes
	l.mu.Unlock()

	var errs []error
	for _, p := range procs {
		errs = append(errs, p.Kill9())
	}
	for _, n := range nodes {
		errs = append(errs, killInside(n.NS))
	}
	for _, name := range []string{"ra", "rb", "rc"} {
		errs = append(errs, removePins(l.bpffs(name)))
	}
	for _, n := range nodes {
		errs = append(errs, n.remove())
	}
	errs = append(errs, os.RemoveAll(l.Dir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove lab %s: %w", l.Name, err)
	}
	return nil
}

func (l *Lab) bpffs(router string) string {
	return filepath.Join(bpfRoot, prefix()+l.Name+"-"+router)
}
