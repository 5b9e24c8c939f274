// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"errors"
	"fmt"
	"net"
	"net/rpc"
	"os"
	"sync"
	"time"
)

// workerVariable makes this program a worker that listens on a unix socket.
const workerVariable = "VIPPIN_SWARM_SOCKET"

// Environment is what a worker is started with: this program again, without
// arguments, inside the namespace.
func Environment(socket string) []string { return []string{workerVariable + "=" + socket} }

// Worker serves the parent and returns true if this process is a worker; it
// belongs at the beginning of main and TestMain.
func Worker() bool {
	path := os.Getenv(workerVariable)
	if path == "" {
		return false
	}
	if err := serve(path); err != nil {
		fmt.Fprintln(os.Stderr, "swarm worker:", err)
		os.Exit(1)
	}
	return true
}

// serve answers one parent until it hangs up.
func serve(path string) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	defer l.Close()
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	r, c := rpc.NewServer(), &calls{}
	if err := r.RegisterName("Swarm", c); err != nil {
		return err
	}
	defer c.close()
	r.ServeConn(conn)
	return nil
}

// None is no argument, or no answer.
type None struct{}

// calls are what a parent may ask of a worker.
type calls struct {
	mu     sync.Mutex
	server *server
	crowd  *crowd
	probes *probes
	storm  *storm
}

// close ends everything that was started.
func (c *calls) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server != nil {
		c.server.close()
	}
	if c.crowd != nil {
		c.crowd.close()
	}
	if c.probes != nil {
		c.probes.close()
	}
	if c.storm != nil {
		c.storm.close()
	}
}

var errIdle = errors.New("the worker does not do that yet")

// Serve starts a server.
func (c *calls) Serve(plan ServerPlan, _ *None) (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.server, err = startServer(plan)
	return err
}

// Seen is what the server has seen.
func (c *calls) Seen(_ None, seen *[Protos][]Seen) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server == nil {
		return errIdle
	}
	*seen = c.server.report()
	return nil
}

// Open begins to open a crowd's flows.
func (c *calls) Open(plan Crowd, _ *None) (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.crowd, err = startCrowd(plan)
	return err
}

// Settle begins a phase.
func (c *calls) Settle(phase Phase, _ *None) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.crowd == nil {
		return errIdle
	}
	c.crowd.settle(phase)
	return nil
}

// Progress says how far the crowd has come.
func (c *calls) Progress(_ None, p *Progress) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.crowd == nil {
		return errIdle
	}
	*p = c.crowd.progress()
	return nil
}

// States is what the crowd knows of its flows.
func (c *calls) States(_ None, states *[]FlowState) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.crowd == nil {
		return errIdle
	}
	*states = c.crowd.states()
	return nil
}

// Probe starts probes.
func (c *calls) Probe(plan ProbePlan, _ *None) (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.probes, err = startProbes(plan)
	return err
}

// Replies is what the probes have got since some time.
func (c *calls) Replies(since time.Time, log *ProbeLog) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.probes == nil {
		return errIdle
	}
	*log = c.probes.replies(since)
	return nil
}

// Churn sends new flows and returns when all are sent.
func (c *calls) Churn(plan ChurnPlan, result *Churned) (err error) {
	*result, err = churn(plan)
	return err
}

// Connect makes connections one after the other, and returns when all are made.
func (c *calls) Connect(plan ConnectPlan, took *Connected) (err error) {
	*took, err = connect(plan)
	return err
}

// Storm begins to make connections.
func (c *calls) Storm(plan StormPlan, _ *None) (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.storm, err = startStorm(plan)
	return err
}

// EndStorm begins no more connections.
func (c *calls) EndStorm(_ None, _ *None) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.storm == nil {
		return errIdle
	}
	c.storm.end()
	return nil
}

// Stormed is what has become of the connections.
func (c *calls) Stormed(_ None, storm *Storm) (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.storm == nil {
		return errIdle
	}
	*storm, err = c.storm.report()
	return err
}

// Client is the parent's end of a worker.
type Client struct{ *rpc.Client }

// Dial connects to a worker that is being started.
func Dial(path string, patience time.Duration) (*Client, error) {
	deadline := time.Now().Add(patience)
	for {
		conn, err := net.Dial("unix", path)
		if err == nil {
			return &Client{rpc.NewClient(conn)}, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("reach a swarm worker: %w", err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// Tell asks for something without an answer.
func (c *Client) Tell(what string, argument any) error {
	if err := c.Call("Swarm."+what, argument, &None{}); err != nil {
		return fmt.Errorf("tell a swarm worker to %s: %w", what, err)
	}
	return nil
}

// Connect has the worker make connections.
func (c *Client) Connect(plan ConnectPlan) (took Connected, err error) {
	if err = c.Call("Swarm.Connect", plan, &took); err != nil {
		return nil, fmt.Errorf("have a swarm worker make connections: %w", err)
	}
	return took, nil
}

// Replies are the answers of the worker's probes since some time.
func (c *Client) Replies(since time.Time) (log ProbeLog, err error) {
	if err = c.Call("Swarm.Replies", since, &log); err != nil {
		return nil, fmt.Errorf("ask a swarm worker for its probes: %w", err)
	}
	return log, nil
}

// Ask is a call without an argument.
func (c *Client) Ask(what string, answer any) error {
	if err := c.Call("Swarm."+what, None{}, answer); err != nil {
		return fmt.Errorf("ask a swarm worker for %s: %w", what, err)
	}
	return nil
}
