// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"vippin/policy"
)

const (
	columns = 100 // of comments
	beside  = 40  // column of a comment beside a value
)

// page is the text in the making.
type page struct {
	strings.Builder
	*notes
}

// line writes one, with a comment beside it if there is one.
func (p *page) line(text, comment string) {
	if comment != "" {
		text += strings.Repeat(" ", max(beside-utf8.RuneCountInString(text), 2)) + "# " + clean(comment)
	}
	p.WriteString(text + "\n")
}

// comment writes one on lines of its own; the first has another prefix.
func (p *page) comment(first, next, text string) {
	line := first
	for i, word := range strings.Fields(clean(text)) {
		if i > 0 && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > columns {
			p.WriteString(line + "\n")
			line = next + word
			continue
		}
		if i > 0 {
			line += " "
		}
		line += word
	}
	p.WriteString(line + "\n")
}

// section writes what is to be said above a section: what is left to do, and
// what each setting became.
func (p *page) section(in section, title string) {
	p.WriteString("\n")
	if title != "" {
		p.comment("# ", "# ", title)
	}
	for _, todo := range p.todos[in] {
		text := todo.Text
		if todo.File != "" {
			text += fmt.Sprintf(" (%s:%d)", todo.File, todo.Line)
		}
		p.comment("# TODO: ", "#   ", text)
	}
	for _, file := range filesOf(p.explained[in]) {
		p.comment("# ", "# ", file+":")
		var here []note
		for _, n := range p.explained[in] {
			if n.at.file == file {
				here = append(here, n)
			}
		}
		for _, about := range paragraphs(here) {
			p.comment("#   ", "#     ", about.subjects()+": "+about.text)
		}
	}
}

// render writes the configuration.
func (p *plan) render(sources []Source) []byte {
	var sync *syncPlan
	if p.replicates || len(p.options.Peers) > 0 {
		sync = p.makeSync()
	} else {
		p.unused()
		p.todo(inSync, place{}, "nothing in these files sends connections to another router: give conntrackd.conf, too, or --listen and --peer")
	}
	if len(p.instances) == 0 {
		p.todo(inGroups, place{}, "no VRRP instance is in these files: give keepalived.conf or VyOS's commands, too, or write groups and pins by hand")
	}
	out := &page{notes: p.notes}
	p.head(out, sources)
	p.renderTable(out)
	p.renderGroups(out)
	p.renderPins(out)
	out.section(inSync, "")
	if sync != nil {
		p.renderSync(out, sync)
	}
	if len(p.warnings) > 0 {
		out.WriteString("\n# Not understood, and left out:\n")
		for _, w := range p.warnings {
			out.comment("#   ", "#     ", located(w))
		}
	}
	return []byte(out.String())
}

func (p *plan) head(out *page, sources []Source) {
	out.WriteString("# Made by \"vippin migrate\" of:\n")
	for _, src := range sources {
		out.comment("#   ", "#     ", src.Name)
	}
	out.WriteString(`# Numbers in brackets are lines there. What is not here has its default.
#
# Then, on both routers:
#   1. Fill in what says TODO. "vippin check" tells what is wrong, and what would be done.
#   2. "vippin keygen", and on the other router "vippin trust NAME KEY".
#   3. Let keepalived run no script of conntrackd's any more, and switch conntrackd off ("systemctl disable
#      --now conntrackd", "delete service conntrack-sync"), unless something below needs it on.
#   4. Start vippin. "vippin status", "vippin peers" and "vippin doctor" tell how it does.
`)
	if len(p.explained[inGeneral])+len(p.todos[inGeneral]) > 0 {
		out.section(inGeneral, "")
	}
}

// renderTable raises the bound on pinned connections to what conntrackd held.
func (p *plan) renderTable(out *page) {
	if p.tableSize <= int(policy.DefaultConfig("", "").Dataplane.MaxFlows) {
		return
	}
	out.WriteString("\ndataplane:\n")
	out.line(fmt.Sprintf("  max_flows: %d", min(p.tableSize, policy.MaxFlowsMax)), "half of HashLimit: what conntrack's table has room for")
}

func (p *plan) renderGroups(out *page) {
	out.section(inGroups, "VRRP instances that fail over together.")
	if len(p.groups) == 0 {
		out.WriteString("groups: []\n")
		return
	}
	out.WriteString("groups:\n")
	for _, g := range p.groups {
		out.line("  - name: "+quoted(g.name), g.what)
		if len(g.vrids) == 0 {
			continue
		}
		out.WriteString("    vrids:\n")
		for _, v := range g.vrids {
			out.line("      - "+strconv.Quote(v.text), v.from.name)
		}
	}
}

func (p *plan) renderPins(out *page) {
	out.section(inPins, "One pin for each VLAN whose masqueraded connections leave with the VIP.")
	if len(p.pins) == 0 {
		out.WriteString("pins: []\n")
		return
	}
	out.WriteString("pins:\n")
	for _, pin := range p.pins {
		p.renderPin(out, pin)
	}
}

func (p *plan) renderPin(out *page, pin *pinPlan) {
	tag := strings.Join(pin.names, ", ")
	vlan := pin.vlan.String()
	switch {
	case pin.vlan.Inner != 0:
		vlan = strconv.Quote(vlan)
	case pin.vlan == (policy.VLAN{}):
		tag += "; if a switch tags for this interface, write that VLAN's number"
	}
	out.line("  - vlan: "+vlan, tag)
	if pin.name != "" {
		out.line("    name: "+quoted(pin.name), "")
	}
	out.line("    interface: "+quoted(pin.iface), "")
	comment := ""
	if several(pin.vips) {
		comment = "the first of each family becomes the source"
	}
	out.line("    vips: "+listOf(pin.vips), comment)
	out.line("    group: "+quoted(pin.group.name), "")
	if len(pin.sources) > 0 {
		out.line("    sources: "+listOf(pin.sources), "")
	}
	if pin.off != "" {
		out.line("    enabled: false", pin.off)
	}
}

// several says whether there is a choice of sources in one family.
func several(vips []netip.Addr) bool {
	var count [2]int
	for _, vip := range vips {
		if vip.Is4() {
			count[0]++
		} else if !vip.IsLinkLocalUnicast() {
			count[1]++
		}
	}
	return count[0] > 1 || count[1] > 1
}

func (p *plan) renderSync(out *page, s *syncPlan) {
	out.WriteString("sync:\n")
	if s.listen.IsValid() {
		out.line("  listen: "+addrPort(s.listen), s.from)
	}
	out.line("  scope: all", "as conntrackd: every connection; \"nat\": translated ones alone")
	if s.protocols != nil {
		out.line("  protocols: ["+strings.Join(s.protocols, ", ")+"]", "without the line: all; those that are not listed break at a failover")
	}
	if len(s.ignore) > 0 {
		out.line("  ignore: "+listOf(s.ignore), "addresses of the routers themselves need not stand here")
	}
	switch {
	case p.expect.given:
		out.line(fmt.Sprintf("  expect: %t", p.expect.on), "")
	case p.replicates:
		out.line("  expect: true", "the default; it was off there, and costs nothing without conntrack helpers")
	}
	if !s.listen.IsValid() || len(s.peers) == 0 {
		out.WriteString(peersToDo)
		return
	}
	out.WriteString("  peers:\n")
	for _, peer := range s.peers {
		out.line("    - name: "+quoted(peer.Name), "\"vippin trust "+peer.Name+" KEY\" gives its key")
		out.line("      address: "+addrPort(peer.Address), "")
	}
}

// peersToDo is how they are written.
const peersToDo = `  # peers:
  #   - name: router-b
  #     address: ADDRESS:7443
`

var plain = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*$`)

// yamlWords mean something else to one or another reader of YAML.
var yamlWords = wordSet("true false yes no on off null y n nan inf")

// quoted puts quotes around what YAML would take for something else.
func quoted(text string) string {
	if plain.MatchString(text) && !yamlWords[strings.ToLower(text)] {
		return text
	}
	return strconv.Quote(text)
}

// addrPort writes an address and a port.
func addrPort(ap netip.AddrPort) string {
	if ap.Addr().Is6() {
		return strconv.Quote(ap.String())
	}
	return ap.String()
}

// listOf writes addresses or prefixes in brackets.
func listOf[T fmt.Stringer](list []T) string {
	parts := make([]string, len(list))
	for i, item := range list {
		parts[i] = item.String()
		if strings.Contains(parts[i], ":") {
			parts[i] = strconv.Quote(parts[i])
		}
	}
	return "[" + strings.Join(parts, ", ") + "]"
}
