// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"image/color"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"

	"vippin/policy"
)

// benchColours of the cases, told apart also by who sees no red or green.
var benchColours = map[policy.BenchCase]color.Color{
	policy.BenchDrop:       color.RGBA{200, 200, 200, 255},
	policy.BenchRedirect:   color.RGBA{120, 120, 120, 255},
	policy.BenchFib:        color.RGBA{86, 180, 233, 255},
	policy.BenchForward:    color.RGBA{240, 228, 66, 255},
	policy.BenchConntrack:  color.RGBA{230, 159, 0, 255},
	policy.BenchMasquerade: color.RGBA{213, 94, 0, 255},
	policy.BenchSNAT:       color.RGBA{204, 121, 167, 255},
	policy.BenchEmpty:      color.RGBA{0, 0, 0, 255},
	policy.BenchPinned:     color.RGBA{0, 158, 115, 255},
	policy.BenchOff:        color.RGBA{120, 94, 240, 255},
	policy.BenchFast:       color.RGBA{0, 114, 178, 255},
}

// plottable refuses what cannot be drawn before anything is measured.
func plottable(path string) error {
	switch filepath.Ext(path) {
	case ".svg", ".png":
		return nil
	}
	return fmt.Errorf("draw %s: it must end in .svg or .png", path)
}

// plotBench draws the rates of all cases in the plainest setting, and beside them
// the cost of a packet against flows, if there are several numbers of them.
func plotBench(report policy.BenchReport, path string) error {
	const width, height = 16 * vg.Centimeter, 11 * vg.Centimeter
	if len(report.Rows) == 0 {
		return fmt.Errorf("nothing was measured")
	}
	base := plainest(report.Rows)
	bars, err := plotRates(report.Rows, base)
	if err != nil {
		return err
	}
	line := []*plot.Plot{bars}
	if len(flowsOf(report.Rows, base)) > 1 {
		costs, err := plotCosts(report.Rows, base)
		if err != nil {
			return err
		}
		line = append(line, costs)
	}
	canvas := newCanvas(path, width*vg.Length(len(line)), height)
	tiles := draw.Tiles{Rows: 1, Cols: len(line), PadX: vg.Centimeter, PadTop: vg.Millimeter, PadLeft: 3 * vg.Millimeter, PadRight: 3 * vg.Millimeter}
	for i, c := range plot.Align([][]*plot.Plot{line}, tiles, draw.New(canvas))[0] {
		line[i].Draw(c)
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := canvas.WriteTo(file); err != nil {
		return err
	}
	return file.Close()
}

type fileCanvas interface {
	vg.CanvasSizer
	io.WriterTo
}

func newCanvas(path string, width, height vg.Length) fileCanvas {
	if filepath.Ext(path) == ".png" {
		return vgimg.PngCanvas{Canvas: vgimg.NewWith(vgimg.UseWH(width, height), vgimg.UseDPI(144))}
	}
	return vgsvg.New(width, height)
}

// plainest is the setting with most cases; of several the one nearest to 10,000
// flows of 64 octets over IPv4 that go out.
func plainest(rows []policy.BenchRow) policy.BenchSetting {
	wanted := policy.BenchSetting{Direction: policy.BenchOut, Flows: 10_000, Size: 64, Family: "ipv4"}
	best, most := rows[0].BenchSetting, 0
	for _, block := range benchBlocks(rows) {
		n := 2 * len(block)
		if block[0].BenchSetting == wanted {
			n++
		}
		if n > most {
			best, most = block[0].BenchSetting, n
		}
	}
	return best
}

// flowsOf are the numbers of flows for which there are rows that differ from the
// setting in that alone.
func flowsOf(rows []policy.BenchRow, base policy.BenchSetting) (flows []int) {
	for _, r := range rows {
		other := r.BenchSetting
		other.Flows = base.Flows
		if other == base && !slices.Contains(flows, r.Flows) {
			flows = append(flows, r.Flows)
		}
	}
	return flows
}

func settingText(s policy.BenchSetting, flows bool) string {
	text := fmt.Sprintf("%d octets, %s, %s", s.Size, strings.Replace(s.Family, "ip", "IP", 1), s.Direction)
	if flows {
		text = grouped(s.Flows) + " flows, " + text
	}
	return text
}

func plotRates(rows []policy.BenchRow, base policy.BenchSetting) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text = "Million packets a second, one core\n" + settingText(base, true)
	p.X.Min = 0
	var names []string
	for _, name := range slices.Backward(policy.BenchCases()) { // the first one on top
		i := slices.IndexFunc(rows, func(r policy.BenchRow) bool { return r.BenchSetting == base && r.Case == name })
		if i < 0 {
			continue
		}
		bar, err := plotter.NewBarChart(plotter.Values{rows[i].Mpps}, 0.55*vg.Centimeter)
		if err != nil {
			return nil, err
		}
		bar.Horizontal, bar.XMin, bar.Color, bar.LineStyle.Width = true, float64(len(names)), benchColours[name], 0
		label, err := plotter.NewLabels(plotter.XYLabels{
			XYs:    plotter.XYs{{X: rows[i].Mpps, Y: float64(len(names))}},
			Labels: []string{fmt.Sprintf(" %.2f", rows[i].Mpps)},
		})
		if err != nil {
			return nil, err
		}
		label.Offset.Y = -1.5 * vg.Millimeter
		p.Add(bar, label)
		names = append(names, string(name))
	}
	p.NominalY(names...)
	p.X.Max *= 1.12 // room for the last figure
	return p, nil
}

func plotCosts(rows []policy.BenchRow, base policy.BenchSetting) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text = "ns a packet, generator and sink included\n" + settingText(base, false)
	p.X.Label.Text = "flows"
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	p.Legend.Left, p.Legend.Top = true, true
	for _, name := range policy.BenchCases() {
		var points plotter.XYs
		for _, r := range rows {
			other := r.BenchSetting
			other.Flows = base.Flows
			if r.Case == name && other == base && r.NsPerPacket > 0 {
				points = append(points, plotter.XY{X: float64(r.Flows), Y: r.NsPerPacket})
			}
		}
		if len(points) == 0 {
			continue
		}
		line, dots, err := plotter.NewLinePoints(points)
		if err != nil {
			return nil, err
		}
		line.Color, line.Width, dots.Color, dots.Shape = benchColours[name], vg.Points(1.5), benchColours[name], draw.CircleGlyph{}
		p.Add(line, dots)
		p.Legend.Add(string(name), line, dots)
	}
	p.Y.Max *= 12 // room for the legend
	return p, nil
}
