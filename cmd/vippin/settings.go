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
		config = defaultConfig()
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

// anyConfig is a configuration that leaves everything it can to the defaults.
const anyConfig = "pins: [{vlan: 1, vips: [192.0.2.1]}]"

// defaultConfig has the default places; its pin means nothing.
func defaultConfig() *policy.Config {
	config, err := policy.ParseConfig([]byte(anyConfig), "defaults", "localhost")
	if err != nil {
		panic("vippin: the default configuration has errors: " + err.Error())
	}
	return config
}

// strictConfig is places for verbs that cannot do without the configuration.
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
