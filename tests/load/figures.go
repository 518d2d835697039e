package main

import (
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

// figure is one line of bench.json: the measured value, its floor, and their ratio. With several
// runs it has the medians; low and high are the lowest and highest ratio.
type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Floor float64 `json:"floor"` // in the same unit, from the same run
	Ratio float64 `json:"ratio"` // value ÷ floor
	Goal  float64 `json:"goal"`  // for the ratio; 0: none
	Met   bool    `json:"met"`

	Low    float64 `json:"low"`
	High   float64 `json:"high"`
	Runs   int     `json:"runs"`
	AtMost bool    `json:"at_most"` // the goal is an upper limit
	Floors string  `json:"floor_is"`
	Failed int     `json:"failed"` // payments without an outcome; the goal is met only when there are none

	Latency map[string]float64 `json:"latency_ms,omitempty"` // of an open loop, by percentile, of all runs together
	Wanted  map[string]float64 `json:"wanted_ms,omitempty"`  // the most that is wanted of some of them

	// Microseconds of processor time a payment, by program, in the last run.
	Cost      map[string]float64 `json:"cost_us,omitempty"`
	FloorCost map[string]float64 `json:"floor_cost_us,omitempty"`
}

// goal is the goal for a scenario's ratio, and what the floor is.
type goal struct {
	name, unit, floor string
	ratio             float64
	atMost            bool
}

// sample is one run's value and its floor.
type sample struct{ value, floor float64 }

func (g goal) figure(samples []sample) figure {
	f := figure{Name: g.name, Unit: g.unit, Goal: g.ratio, AtMost: g.atMost, Floors: g.floor, Runs: len(samples)}
	var values, floors, ratios []float64
	for _, s := range samples {
		values, floors, ratios = append(values, s.value), append(floors, s.floor), append(ratios, s.value/s.floor)
	}
	f.Value, f.Floor, f.Ratio = round(median(values)), round(median(floors)), round(median(ratios))
	f.Low, f.High = round(slices.Min(ratios)), round(slices.Max(ratios))
	f.Met = median(ratios) >= f.Goal
	if g.atMost {
		f.Met = median(ratios) <= f.Goal
	}
	return f
}

func median(of []float64) float64 {
	sorted := slices.Sorted(slices.Values(of))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// round keeps three digits.
func round(x float64) float64 {
	if x == 0 {
		return 0
	}
	scale := math.Pow(10, 2-math.Floor(math.Log10(math.Abs(x))))
	return math.Round(x*scale) / scale
}

func printFigures(figures []figure) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "name\tvalue\tunit\tfloor\tratio\tlowest to highest\tgoal\tmet")
	for _, f := range figures {
		aim, met := fmt.Sprintf("≥ %g", f.Goal), "yes"
		if f.AtMost {
			aim = fmt.Sprintf("≤ %g", f.Goal)
		}
		switch {
		case len(f.Wanted) > 0:
			var most []string
			for _, percentile := range slices.Sorted(maps.Keys(f.Wanted)) {
				most = append(most, fmt.Sprintf("%s ≤ %g ms", percentile, f.Wanted[percentile]))
			}
			aim = strings.Join(most, ", ")
		case f.Goal == 0:
			aim, met = "none", "-"
		}
		if !f.Met {
			met = "no"
		}
		if f.Failed > 0 {
			met = fmt.Sprintf("no: %d failed", f.Failed)
		}
		fmt.Fprintf(w, "%s\t%g\t%s\t%g (%s)\t%g\t%g to %g\t%s\t%s\n", f.Name, f.Value, f.Unit, f.Floor, f.Floors, f.Ratio, f.Low, f.High, aim, met)
	}
	w.Flush()
}
