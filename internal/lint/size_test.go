package lint

import (
	"fmt"
	"go/ast"
	"slices"
	"strings"
	"testing"
)

const (
	fileLinesMax = 600
	funcLinesMax = 70
)

// excess is a thing over its limit: what, and how much of it there is.
type excess struct {
	kind string // file (lines), func (lines), sleep (calls)
	what string
	size int
}

func (e excess) String() string { return fmt.Sprintf("%s %s %d", e.kind, e.what, e.size) }

func TestSizesAndSleeps(t *testing.T) {
	var found []excess
	for _, f := range mustGoFiles(t) {
		found = append(found, measure(f)...)
	}
	allowed, err := parseRatchet(text(t, "internal/lint/ratchet.txt"))
	if err != nil {
		t.Fatal(err)
	}
	report(t, checkRatchet(found, allowed))
}

// measure returns what in f is over a limit.
func measure(f *goFile) (found []excess) {
	if f.lines > fileLinesMax {
		found = append(found, excess{"file", f.path, f.lines})
	}
	for _, d := range f.ast.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		lines := f.fset.Position(fn.End()).Line - f.fset.Position(fn.Pos()).Line + 1
		if lines > funcLinesMax {
			found = append(found, excess{"func", f.path + ":" + fn.Name.Name, lines})
		}
	}
	if n := countSleeps(f); n > 0 {
		found = append(found, excess{"sleep", f.path, n})
	}
	return found
}

// countSleeps counts the calls of time.Sleep in a test. A sleep guesses how long
// something takes: too short it fails on a busy machine, too long it makes
// everybody wait. In a file that uses testing/synctest the time is virtual.
func countSleeps(f *goFile) (n int) {
	if !f.isTest() || f.imports("testing/synctest") {
		return 0
	}
	ast.Inspect(f.ast, func(node ast.Node) bool {
		if s, ok := node.(*ast.SelectorExpr); ok && s.Sel.Name == "Sleep" {
			if x, ok := s.X.(*ast.Ident); ok && x.Name == "time" {
				n++
			}
		}
		return true
	})
	return n
}

// parseRatchet reads lines "kind what size", '#' begins a comment.
func parseRatchet(text string) ([]excess, error) {
	var list []excess
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		var e excess
		if n, err := fmt.Sscanf(line, "%s %s %d", &e.kind, &e.what, &e.size); n != 3 {
			return nil, fmt.Errorf("ratchet.txt: %q: %w", line, err)
		}
		list = append(list, e)
	}
	return list, nil
}

// checkRatchet complains about what is found and not allowed, and about what is
// allowed and no longer found just so.
func checkRatchet(found, allowed []excess) (complaints []string) {
	for _, e := range found {
		if !slices.Contains(allowed, e) {
			complaints = append(complaints, fmt.Sprintf("%v: over the limit (file %d lines, function %d lines, no sleep in tests)", e, fileLinesMax, funcLinesMax))
		}
	}
	for _, e := range allowed {
		if !slices.Contains(found, e) {
			complaints = append(complaints, fmt.Sprintf("ratchet.txt: %v: no longer so, lower or remove the entry", e))
		}
	}
	return complaints
}

func TestSizesAndSleepsComplains(t *testing.T) {
	src := "package p\nimport \"time\"\nfunc long() {" + strings.Repeat("\n", funcLinesMax) + "}\n" +
		"func short() { time.Sleep(1); time.Sleep(2) }" + strings.Repeat("\n", fileLinesMax)
	f, err := parseGo("p_test.go", []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	found := measure(f)
	want := []excess{
		{"file", "p_test.go", fileLinesMax + 3 + funcLinesMax},
		{"func", "p_test.go:long", funcLinesMax + 1},
		{"sleep", "p_test.go", 2},
	}
	if !slices.Equal(found, want) {
		t.Fatalf("found %v, want %v", found, want)
	}
	allowed, err := parseRatchet("# why\nfunc p_test.go:long 71 # so\nsleep p_test.go 3\n")
	if err != nil {
		t.Fatal(err)
	}
	expect(t, checkRatchet(found, allowed), "file p_test.go 673", "sleep p_test.go 2", "ratchet.txt: sleep p_test.go 3")

	virtual, err := parseGo("p_test.go", []byte("package p\nimport (\"testing/synctest\"; \"time\")\nfunc f() { time.Sleep(1); synctest.Wait() }\n"))
	if err != nil {
		t.Fatal(err)
	}
	if n := countSleeps(virtual); n != 0 {
		t.Errorf("a virtual sleep was counted")
	}
	if _, err := parseRatchet("func only"); err == nil {
		t.Error("a broken line was accepted")
	}
}
