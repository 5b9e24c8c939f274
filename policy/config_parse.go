// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"path"

	"go.yaml.in/yaml/v3"
)

// configSizeMax is more than any honest file has.
const configSizeMax = 1 << 20 // octets

// ParseConfig reads a configuration file. It is strict: every fault is
// returned at once as ConfigErrors, each with file and line, naming the thing
// and the way out; then there is no Config. File is used in messages only;
// hostname is the default of "node".
func ParseConfig(data []byte, file, hostname string) (*Config, error) {
	r := &configReader{file: file, lines: map[string]int{}, bad: map[string]bool{}}
	if len(data) > configSizeMax {
		r.fault(1, "the file has %d octets: shorten it to %d", len(data), configSizeMax)
		return nil, r.err()
	}
	cfg := DefaultConfig(file, hostname)
	if root := r.document(data); root != nil {
		r.mapping(root, "", r.topLevel(cfg))
		if !r.has("sync.ready_file") { // it follows run_dir
			cfg.Sync.ReadyFile = path.Join(cfg.RunDir, "ready")
		}
		r.check(cfg)
	}
	if err := r.err(); err != nil {
		return nil, err
	}
	return cfg, nil
}

// section reads a mapping inside a mapping.
func (r *configReader) section(known fields) func(*yaml.Node, string) {
	return func(n *yaml.Node, place string) { r.mapping(n, place, known) }
}

func (r *configReader) topLevel(cfg *Config) fields {
	return fields{
		"node":      one(r, &cfg.Node, wordOf(64)),
		"run_dir":   one(r, &cfg.RunDir, absolutePath),
		"state_dir": one(r, &cfg.StateDir, absolutePath),
		"bpffs":     one(r, &cfg.BPFFS, absolutePath),
		"log":       r.section(fields{"level": one(r, &cfg.Log.Level, logLevel)}),
		"control":   r.section(fields{"group": one(r, &cfg.Control.Group, orNothing(wordOf(32)))}),
		"dataplane": r.section(fields{"max_flows": one(r, &cfg.Dataplane.MaxFlows, number[uint32](1, MaxFlowsMax))}),
		"groups": func(n *yaml.Node, place string) {
			r.list(n, place, func(n *yaml.Node, place string) {
				cfg.Groups = append(cfg.Groups, r.group(n, place))
			})
		},
		"pins": func(n *yaml.Node, place string) {
			r.list(n, place, func(n *yaml.Node, place string) {
				cfg.Pins = append(cfg.Pins, r.pin(n, place))
			})
		},
		"vrrp":     r.section(r.vrrp(&cfg.VRRP)),
		"sync":     r.section(r.sync(&cfg.Sync)),
		"fastpath": r.section(r.fastpath(&cfg.Fastpath)),
		"metrics":  r.section(fields{"listen": one(r, &cfg.Metrics.Listen, orNothing(addrPort))}),
	}
}

func (r *configReader) group(n *yaml.Node, place string) GroupConfig {
	g := GroupConfig{Line: n.Line}
	if !r.mapping(n, place, fields{
		"name":  one(r, &g.Name, groupName),
		"vrids": many(r, &g.VRIDs, vridAt),
	}) {
		g.Line = 0
	}
	return g
}

func (r *configReader) pin(n *yaml.Node, place string) PinConfig {
	p := PinConfig{Enabled: true, Line: n.Line}
	if !r.mapping(n, place, fields{
		"vlan":      one(r, &p.VLAN, vlanTag),
		"name":      one(r, &p.Name, orNothing(pinName)),
		"interface": one(r, &p.Interface, orNothing(interfaceName)),
		"vips":      many(r, &p.VIPs, vip),
		"vrid":      one(r, &p.VRID, number[uint8](1, 255)),
		"group":     one(r, &p.Group, orNothing(groupName)),
		"enabled":   one(r, &p.Enabled, boolean),
		"sources":   many(r, &p.Sources, prefix),
	}) {
		p.Line = 0
	}
	return p
}

func (r *configReader) vrrp(v *VRRPConfig) fields {
	return fields{
		"keepalived_fifo": one(r, &v.KeepalivedFIFO, orNothing(absolutePath)),
		"tag": r.section(fields{
			"mark":     one(r, &v.Tag.Mark, mark),
			"priority": one(r, &v.Tag.Priority, bits32),
		}),
		"lease": one(r, &v.Lease, duration(leaseMin, leaseMax)),
	}
}

func (r *configReader) sync(s *SyncConfig) fields {
	return fields{
		"listen":          one(r, &s.Listen, orNothing(addrPort)),
		"mode":            one(r, &s.Mode, oneOf(SyncAsync, SyncStrict)),
		"scope":           one(r, &s.Scope, oneOf(ScopePinned, ScopeNAT, ScopeAll)),
		"protocols":       many(r, &s.Protocols, oneOf(SyncProtocols()...)),
		"ignore":          many(r, &s.Ignore, prefix),
		"expect":          one(r, &s.Expect, boolean),
		"strict_timeout":  one(r, &s.StrictTimeout, duration(strictMin, strictMax)),
		"strict_queue":    one(r, &s.StrictQueue, number[uint16](0, 65535)),
		"strict_mark":     one(r, &s.StrictMark, mark),
		"standby_timeout": one(r, &s.StandbyTimeout, duration(standbyMin, standbyMax)),
		"delete_hold":     one(r, &s.DeleteHold, duration(0, holdMax)),
		"ready_timeout":   one(r, &s.ReadyTimeout, duration(0, holdMax)),
		"ready_file":      one(r, &s.ReadyFile, absolutePath),
		"no_rst":          one(r, &s.NoRST, duration(0, holdMax)),
		"peers": func(n *yaml.Node, place string) {
			r.list(n, place, func(n *yaml.Node, place string) {
				s.Peers = append(s.Peers, r.peer(n, place))
			})
		},
	}
}

func (r *configReader) peer(n *yaml.Node, place string) PeerConfig {
	p := PeerConfig{Line: n.Line}
	if !r.mapping(n, place, fields{
		"name":    one(r, &p.Name, wordOf(64)),
		"address": one(r, &p.Address, addrPort),
		"key":     one(r, &p.Key, orNothing(publicKey)),
	}) {
		p.Line = 0
	}
	return p
}

func (r *configReader) fastpath(f *FastpathConfig) fields {
	return fields{
		"enabled":    one(r, &f.Enabled, boolean),
		"interfaces": many(r, &f.Interfaces, interfaceName),
		"all":        one(r, &f.All, boolean),
		"force":      one(r, &f.Force, boolean),
	}
}
