// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"vippin/policy"
)

const defaultConfigFile = "/etc/vippin/vippin.yaml"

// readConfig reads a configuration; all its errors come at once.
func readConfig(file string) (*policy.Config, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	hostname, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("ask for the host name: %w", err)
	}
	return policy.ParseConfig(data, file, hostname)
}

// places are the directories that a verb works with.
type places struct {
	runDir, stateDir, bpffs string
	config                  *policy.Config // nil when there is none, or none that can be read
	problem                 error          // why not
}

// places works without a configuration too, so that looking stays possible
// while it is being edited. A file that was named with -c must exist.
func (c *cli) places() (places, error) {
	config, err := readConfig(c.configFile)
	if errors.Is(err, fs.ErrNotExist) && c.configFile != defaultConfigFile {
		return places{}, err
	}
	var p places
	if err != nil {
		p.problem = err
		config = emptyConfig()
	} else {
		p.config = config
	}
	p.stateDir, p.bpffs = config.StateDir, config.BPFFS
	p.runDir = c.chosenRunDir(config)
	return p, nil
}

func (c *cli) chosenRunDir(config *policy.Config) string {
	switch {
	case c.runDir != "":
		return c.runDir
	case c.env.getenv("VIPPIN_RUN_DIR") != "":
		return c.env.getenv("VIPPIN_RUN_DIR")
	}
	return config.RunDir
}

// emptyConfig is what a file without a word means: the default places.
func emptyConfig() *policy.Config {
	config, err := policy.ParseConfig(nil, "", "localhost")
	if err != nil {
		panic("vippin: an empty configuration has errors: " + err.Error())
	}
	return config
}

// strict is places for verbs that cannot do without the configuration.
func (c *cli) strictConfig() (*policy.Config, places, error) {
	p, err := c.places()
	if err != nil {
		return nil, p, err
	}
	if p.problem != nil {
		return nil, p, p.problem
	}
	return p.config, p, nil
}
