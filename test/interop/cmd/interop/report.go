package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

type status int

const (
	passed status = iota
	failed
	skipped
)

// outcome is what became of one test. note says why it failed or was skipped.
type outcome struct {
	status status
	name   string
	note   string
}

// report is what became of a suite.
type report struct {
	suite    string
	client   string // with its version
	outcomes []outcome
	took     time.Duration
}

func (r *report) count(s status) (n int) {
	for _, o := range r.outcomes {
		if o.status == s {
			n++
		}
	}
	return n
}

func (r *report) printFailures(w io.Writer) {
	for _, o := range r.outcomes {
		if o.status == failed {
			fmt.Fprintf(w, "FAIL %s: %s\n", r.suite, o.name)
			for line := range strings.Lines(o.note) {
				fmt.Fprintf(w, "    %s\n", strings.TrimRight(line, "\n"))
			}
		}
	}
}

// printReports prints the table and the closing line, and returns whether nothing failed.
func printReports(w io.Writer, reports []report) bool {
	fmt.Fprintln(w)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "suite\tclient\tpassed\tfailed\tskipped\tseconds\t")
	var total [3]int
	for _, r := range reports {
		fmt.Fprintf(tw, "%s\t%s\t%d\t%d\t%d\t%.0f\t\n", r.suite, r.client,
			r.count(passed), r.count(failed), r.count(skipped), r.took.Seconds())
		for s := range total {
			total[s] += r.count(status(s))
		}
	}
	_ = tw.Flush() // to a terminal: nothing better can be done
	fmt.Fprintf(w, "\n%d passed, %d failed, %d skipped\n", total[passed], total[failed], total[skipped])
	return total[failed] == 0 && total[passed] > 0
}

// parseTAP reads the Test Anything Protocol as far as our programs speak it: no
// nested tests, "# SKIP reason", and lines that begin with '#' or are indented
// belong to the test before. It complains if the plan says another number.
func parseTAP(r io.Reader) (outcomes []outcome, err error) {
	planned := -1
	scanner := bufio.NewScanner(r)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		line := scanner.Text()
		if rest, ok := strings.CutPrefix(line, "1.."); ok {
			if _, err := fmt.Sscan(rest, &planned); err != nil {
				return outcomes, fmt.Errorf("plan %q: %w", line, err)
			}
			continue
		}
		word, rest, isResult := strings.Cut(line, "ok ")
		if isResult && (word == "" || word == "not ") {
			outcomes = append(outcomes, tapResult(word == "", rest))
			continue
		}
		if n := len(outcomes); n > 0 && outcomes[n-1].status == failed && (strings.HasPrefix(line, "#") || strings.HasPrefix(line, " ")) && planned < 0 {
			outcomes[n-1].note += strings.TrimLeft(line, "#") + "\n"
		}
	}
	if err := scanner.Err(); err != nil {
		return outcomes, err
	}
	if planned != len(outcomes) {
		return outcomes, fmt.Errorf("%d results, but %d planned (-1: it ended early)", len(outcomes), planned)
	}
	return outcomes, nil
}

// tapResult parses "12 - name # SKIP reason".
func tapResult(ok bool, rest string) outcome {
	_, name, _ := strings.Cut(rest, " - ")
	name, directive, _ := strings.Cut(name, " # ")
	reason, isSkip := strings.CutPrefix(directive, "SKIP")
	switch {
	case ok && isSkip:
		return outcome{skipped, name, strings.TrimSpace(reason)}
	case ok:
		return outcome{passed, name, ""}
	default:
		return outcome{failed, name, ""}
	}
}

// noteLinesMax is how much of a failed Go test's output is shown.
const noteLinesMax = 40

// parseTest2JSON reads the output of go test -json. Only tests of the first level
// count. A package that fails without a failed test (it didn't build, or it
// panicked) is a failure of its own.
func parseTest2JSON(r io.Reader) (outcomes []outcome, err error) {
	output := map[string][]string{} // of what hasn't ended yet; "" is the package
	for dec := json.NewDecoder(r); ; {
		var ev struct{ Action, Test, Output string }
		switch err := dec.Decode(&ev); {
		case errors.Is(err, io.EOF):
			return outcomes, nil
		case err != nil:
			return outcomes, err
		}
		test, _, isSub := strings.Cut(ev.Test, "/")
		if ev.Action == "output" || ev.Action == "build-output" {
			output[test] = append(output[test], ev.Output)
			continue
		}
		s, isEnd := map[string]status{"pass": passed, "fail": failed, "skip": skipped}[ev.Action]
		if !isEnd || isSub {
			continue
		}
		note := ""
		if s != passed {
			lines := output[test]
			note = strings.Join(lines[max(0, len(lines)-noteLinesMax):], "")
		}
		delete(output, test)
		if test == "" {
			if s == failed && !slices.ContainsFunc(outcomes, func(o outcome) bool { return o.status == failed }) {
				outcomes = append(outcomes, outcome{failed, "the package", note})
			}
			continue
		}
		outcomes = append(outcomes, outcome{s, test, note})
	}
}
