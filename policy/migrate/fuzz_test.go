// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"vippin/policy"
)

// fuzzed runs a file of any kind: there is either a configuration that vippin
// takes, or a list of faults that stand in the file.
func fuzzed(t *testing.T, data []byte) {
	t.Helper()
	include := func(pattern, _ string) ([]Source, error) {
		if len(pattern) > 3 {
			return nil, nil
		}
		return []Source{{Name: "f", Data: data}}, nil // which includes itself
	}
	r, err := Run([]Source{{Name: "f", Data: data}}, Options{Node: "router-a", Include: include})
	if err != nil {
		var faults policy.ConfigErrors
		if r != nil || !errors.As(err, &faults) || len(faults) == 0 {
			t.Fatalf("result %v, error %v: want ConfigErrors alone", r, err)
		}
		lines := bytes.Count(data, []byte("\n")) + 1
		for _, fault := range faults {
			if fault.File != "f" || fault.Line < 1 || fault.Line > lines || strings.ContainsAny(fault.Text, "\n\x1b") {
				t.Fatalf("%q in a file of %d lines", fault, lines)
			}
		}
		return
	}
	cfg, err := policy.ParseConfig(r.YAML, "out", "router-a")
	if err != nil {
		t.Fatalf("%v\n%s", err, r.YAML)
	}
	if len(cfg.Pins) != r.Pins || len(cfg.Groups) != r.Groups {
		t.Fatalf("%d pins and %d groups were counted:\n%s", r.Pins, r.Groups, r.YAML)
	}
	for _, text := range append(r.Todos, r.Warnings...) {
		if strings.ContainsAny(text, "\n\r\x1b\u2028") {
			t.Fatalf("%q is more than a line", text)
		}
	}
}

func fuzzSeeds(f *testing.F, name string) {
	for scene, names := range scenes {
		for i, src := range sourcesOf(f, scene) {
			if names[i] == name {
				f.Add(src.Data)
			}
		}
	}
}

func FuzzConntrackd(f *testing.F) {
	fuzzSeeds(f, "conntrackd.conf")
	f.Add([]byte("Sync { UDP Default { IPv6_address fe80::1%a]b Interface \"\u00e9 } } General { Filter { Address Ignore { IPv4_address 1.2.3.4/0 } } }"))
	f.Fuzz(func(t *testing.T, data []byte) { fuzzed(t, append([]byte("Sync { }\n"), data...)) })
}

func FuzzKeepalived(f *testing.F) {
	fuzzSeeds(f, "keepalived.conf")
	f.Add([]byte("include x\n$A=${A} x\n@router-a vrrp_instance ${A} { virtual_ipaddress { 1.2.3.4 dev eth0 } } ~SEQ(x)"))
	f.Add([]byte("vrrp_instance a\n{\ninterface \"e{}\"\nvirtual_router_id 1\nvirtual_ipaddress {\n1.2.3.4/8 label x\nfe80::1\n}\nuse_vmac v\n}\n"))
	f.Fuzz(func(t *testing.T, data []byte) { fuzzed(t, append([]byte("global_defs { }\n"), data...)) })
}

func FuzzVyOS(f *testing.F) {
	fuzzSeeds(f, "commands.txt")
	f.Add([]byte("edit nat source\nset rule 1 translation address 'masquerade'\nup\ntop\nset service conntrack-sync interface e peer fe80::1%x\n"))
	f.Fuzz(func(t *testing.T, data []byte) { fuzzed(t, append([]byte("set system\n"), data...)) })
}
