package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"
)

// row is one result.
type row struct {
	Scenario string    `json:"scenario"`
	What     string    `json:"what"`
	Value    float64   `json:"value"`
	Unit     string    `json:"unit"`
	Samples  []float64 `json:"samples,omitempty"` // of which Value is the median
	Goal     *goal     `json:"goal,omitempty"`
	Met      *bool     `json:"met,omitempty"`
}

// goal is a bound of a row's value, in its unit.
type goal struct {
	AtLeast bool    `json:"at_least"` // else at most
	Bound   float64 `json:"bound"`
}

func atMost(v float64) *goal  { return &goal{false, v} }
func atLeast(v float64) *goal { return &goal{true, v} }

func (g *goal) met(v float64) bool {
	if g.AtLeast {
		return v >= g.Bound
	}
	return v <= g.Bound
}

// add notes a value, and shows it at once.
func (e *env) add(what string, v float64, unit string, g *goal) {
	e.addRow(row{What: what, Value: v, Unit: unit, Goal: g})
}

// addMedian notes the median of several values.
func (e *env) addMedian(what string, vs []float64, unit string, g *goal) float64 {
	m := median(vs)
	e.addRow(row{What: what, Value: m, Unit: unit, Samples: vs, Goal: g})
	return m
}

func (e *env) addRow(r row) {
	r.Scenario = e.name
	if r.Goal != nil {
		met := r.Goal.met(r.Value)
		r.Met = &met
	}
	e.rows = append(e.rows, r)
	fmt.Fprintf(e.out, "   %s: %s %s\n", r.What, number(r.Value), r.Unit)
}

// median returns the middle value, of an even number the lower of the two; NaN of none.
func median(vs []float64) float64 {
	if len(vs) == 0 {
		return math.NaN()
	}
	return slices.Sorted(slices.Values(vs))[(len(vs)-1)/2]
}

// number writes three digits, or more where they stand before the point.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100 || a == math.Trunc(a):
		return grouped(int64(math.Round(v)))
	case a >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	default:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
}

// grouped puts commas between thousands.
func grouped(n int64) string {
	s := strconv.FormatInt(n, 10)
	from := 0
	if n < 0 {
		from = 1
	}
	for i := len(s) - 3; i > from; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// printTable prints all rows with their goals.
func printTable(w io.Writer, rows []row) {
	fmt.Fprintln(w)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "scenario\twhat\tvalue\tgoal\tmet")
	with, met := 0, 0
	for _, r := range rows {
		bound, verdict := "", ""
		if r.Goal != nil {
			with++
			sign := "<="
			if r.Goal.AtLeast {
				sign = ">="
			}
			bound, verdict = fmt.Sprintf("%s %s %s", sign, number(r.Goal.Bound), r.Unit), "no"
			if *r.Met {
				verdict = "yes"
				met++
			}
		}
		fmt.Fprintf(tw, "%s\t%s\t%s %s\t%s\t%s\n", r.Scenario, r.What, number(r.Value), r.Unit, bound, verdict)
	}
	_ = tw.Flush() // to a terminal: nothing better can be done
	fmt.Fprintf(w, "\n%d of %d goals met\n", met, with)
}

// document is the JSON file.
type document struct {
	Started  time.Time `json:"started"`
	Commit   string    `json:"commit"`
	Cores    int       `json:"cores"`
	Settings settings  `json:"settings"`
	Rows     []row     `json:"rows"`
	Errors   []string  `json:"errors,omitempty"`
}

// write makes the file and returns its name.
func (d *document) write(dir string) (string, error) {
	b, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	name := filepath.Join(dir, "flat-"+d.Started.Format("20060102-150405")+".json")
	return name, os.WriteFile(name, append(b, '\n'), 0o644)
}
