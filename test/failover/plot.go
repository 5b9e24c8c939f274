// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"image/color"
	"math"
	"os"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// colours of the arms, told apart also by who sees no red or green.
var colours = map[string]color.Color{
	"vippin":       color.RGBA{0, 114, 178, 255},
	"strict":       color.RGBA{204, 121, 167, 255},
	"strict-alone": color.RGBA{0, 0, 0, 255},
	"conntrackd":   color.RGBA{213, 94, 0, 255},
	"conntrackd-t": color.RGBA{230, 159, 0, 255},
	"direct":       color.RGBA{0, 158, 115, 255},
	"direct-t":     color.RGBA{86, 180, 233, 255},
	"masquerade":   color.RGBA{120, 120, 120, 255},
}

// panel is one diagram against the number of flows, of the plainest setting:
// hard failure, stateful firewall, IPv4, young flows, 100 ms adverts.
type panel struct {
	title, unit string
	log         bool // the vertical axis, too
	percent     bool
	value       func(row) float64
}

func plain(r row) bool {
	return r.Kind == survive && r.Fault == hard && r.Firewall == stateful && r.Family == "ipv4" &&
		r.Age == young && r.Adverts == 100 && r.Only == ""
}

// plots are the files and their panels.
func plots() map[string][]panel {
	survived := func(proto string) func(row) float64 {
		return func(r row) float64 {
			sum := r.survival(proto)
			return share(sum.Survived, sum.Flows)
		}
	}
	middle := func(of func(Result) float64) func(row) float64 {
		return func(r row) float64 { return median(r.values(of)) }
	}
	return map[string][]panel{
		"survival": {
			{title: "TCP", unit: "% of the flows survive", percent: true, value: survived("tcp")},
			{title: "UDP", unit: "% of the flows survive", percent: true, value: survived("udp")},
			{title: "ICMP echo", unit: "% of the flows survive", percent: true, value: survived("icmp")},
		},
		"outage": {
			{title: "Whole outage", unit: "ms, median", value: middle(outageOf)},
			{title: "MASTER to first answer", unit: "ms, median", value: middle(firstOf)},
		},
		"commit": {{title: "conntrackd's commit", unit: "ms, median", log: true, value: middle(commitOf)}},
	}
}

// drawPlots writes them as SVG; prefix is the path without "-NAME.svg".
func drawPlots(results []Result, prefix string) error {
	all := rows(results)
	for name, panels := range plots() {
		if err := drawPlot(all, panels, fmt.Sprintf("%s-%s.svg", prefix, name)); err != nil {
			return fmt.Errorf("plot %s: %w", name, err)
		}
	}
	return nil
}

func drawPlot(all []row, panels []panel, path string) error {
	const width, height = 12 * vg.Centimeter, 9 * vg.Centimeter
	var line []*plot.Plot
	for _, p := range panels {
		diagram, some, err := p.diagram(all)
		if err != nil {
			return err
		}
		if some {
			line = append(line, diagram)
		}
	}
	if len(line) == 0 {
		return nil // nothing of it was measured
	}
	canvas := vgsvg.New(width*vg.Length(len(line)), height)
	tiles := draw.Tiles{Rows: 1, Cols: len(line), PadX: vg.Centimeter}
	area := draw.New(canvas)
	for i, c := range plot.Align([][]*plot.Plot{line}, tiles, area)[0] {
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

// diagram draws a line for each arm; some says whether there was anything.
func (p panel) diagram(all []row) (diagram *plot.Plot, some bool, err error) {
	diagram = plot.New()
	diagram.Title.Text = p.title
	diagram.X.Label.Text = "flows of each protocol"
	diagram.Y.Label.Text = p.unit
	diagram.X.Scale = plot.LogScale{}
	diagram.X.Tick.Marker = plot.LogTicks{Prec: -1}
	diagram.Legend.Top, diagram.Legend.Left = true, true
	if p.log {
		diagram.Y.Scale, diagram.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	} else {
		diagram.Y.Min = min(0, diagram.Y.Min)
	}
	for _, name := range armNames() {
		var points plotter.XYs
		for _, r := range all {
			if v := p.value(r); plain(r) && r.Arm == name && !math.IsNaN(v) {
				points = append(points, plotter.XY{X: float64(r.Flows), Y: v})
			}
		}
		if len(points) == 0 {
			continue
		}
		some = true
		line, dots, err := plotter.NewLinePoints(points)
		if err != nil {
			return nil, false, err
		}
		line.Color, line.Width, dots.Color = colours[name], vg.Points(1.5), colours[name]
		dots.Shape = draw.CircleGlyph{}
		diagram.Add(line, dots)
		diagram.Legend.Add(name, line, dots)
	}
	switch {
	case p.percent: // the lines are near 0 or 100, the legend between them
		diagram.Y.Max, diagram.Legend.YOffs = 102, -2*vg.Centimeter
	case !p.log:
		diagram.Y.Max *= 1.7 // room for the legend
	}
	return diagram, some, nil
}
