package lint

import (
	"fmt"
	"go/ast"
	"slices"
	"strings"
	"testing"
)

func TestImportsGoDown(t *testing.T) {
	report(t, checkTable(layers))
	report(t, checkImports(layers, mustGoPackages(t)))
}

// checkTable complains about entries that name what stands below them.
func checkTable(layers []layer) (complaints []string) {
	above := map[string]bool{}
	for _, l := range layers {
		for _, s := range l.sees {
			if !above[s] {
				complaints = append(complaints, fmt.Sprintf("layers: %s sees %s, which does not stand above it", l.path, s))
			}
		}
		if above[l.path] {
			complaints = append(complaints, "layers: "+l.path+" stands there twice")
		}
		above[l.path] = true
	}
	return complaints
}

// checkImports compares the packages that exist with the table.
func checkImports(layers []layer, pkgs []*goPackage) (complaints []string) {
	position := func(path string) int {
		return slices.IndexFunc(layers, func(l layer) bool { return l.path == path })
	}
	exists := map[string]bool{}
	for _, p := range pkgs {
		exists[p.path()] = true
		at := position(p.path())
		if at < 0 {
			complaints = append(complaints, p.path()+" has no entry in layers")
			continue
		}
		imports := ours(p.Imports)
		for _, i := range imports {
			if !slices.Contains(layers[at].sees, i) {
				complaints = append(complaints, fmt.Sprintf("%s imports %s, which its entry in layers doesn't allow", p.path(), i))
			}
		}
		for _, s := range layers[at].sees {
			if !slices.Contains(imports, s) {
				complaints = append(complaints, fmt.Sprintf("layers: %s no longer imports %s, remove it", p.path(), s))
			}
		}
		tests := slices.Concat(ours(p.TestImports), ours(p.XTestImports))
		slices.Sort(tests)
		for _, i := range slices.Compact(tests) {
			if i != p.path() && (position(i) < 0 || position(i) > at) {
				complaints = append(complaints, fmt.Sprintf("a test of %s imports %s, which does not stand above it in layers", p.path(), i))
			}
		}
	}
	for _, l := range layers {
		if !exists[l.path] {
			complaints = append(complaints, "layers: "+l.path+" does not exist")
		}
	}
	return complaints
}

func TestImportsGoDownComplains(t *testing.T) {
	table := []layer{{path: "a"}, {path: "b", sees: []string{"a", "c"}}, {path: "c"}, {path: "c"}, {path: "gone"}}
	expect(t, checkTable(table), "b sees c", "c stands there twice")
	pkgs := []*goPackage{
		{ImportPath: module + "/a", Imports: []string{"fmt", module + "/b"}},
		{ImportPath: module + "/b", Imports: []string{module + "/c"}, TestImports: []string{module + "/a", module + "/b"}},
		{ImportPath: module + "/c", XTestImports: []string{module + "/gone"}},
		{ImportPath: module + "/new"},
	}
	expect(t, checkImports(table, pkgs),
		"a imports b", "b no longer imports a", "a test of c imports gone", "new has no entry", "gone does not exist")
}

// pureBans is what a pure package may not import: each makes the same calls
// give another result the next time, or makes a value shared.
var pureBans = map[string]string{
	"context":     "nothing in a pure package waits",
	"crypto/rand": "randomness is passed in",
	"log":         "results are returned, not logged",
	"math/rand":   "randomness is passed in",
	"net":         "no I/O",
	"os":          "no I/O",
	"sync":        "values belong to one goroutine",
	"syscall":     "no I/O",
	"unsafe":      "the race detector and the fuzzer must see everything",
}

// impureTime are the functions of package time that read the clock or wait.
var impureTime = []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}

func TestPurePackages(t *testing.T) {
	pure := map[string]bool{}
	for _, l := range layers {
		pure[l.path] = l.pure
	}
	for _, f := range mustGoFiles(t) {
		if dir := f.path[:max(strings.LastIndexByte(f.path, '/'), 0)]; pure[dir] && !f.isTest() {
			report(t, checkPure(f))
		}
	}
}

// checkPure complains about everything in f that isn't a function of its input.
func checkPure(f *goFile) (complaints []string) {
	complain := func(n ast.Node, format string, args ...any) {
		complaints = append(complaints, fmt.Sprintf("%s: ", f.fset.Position(n.Pos()))+fmt.Sprintf(format, args...))
	}
	for _, i := range f.ast.Imports {
		path := strings.Trim(i.Path.Value, `"`)
		for ban, why := range pureBans {
			if path == ban || strings.HasPrefix(path, ban+"/") {
				complain(i, "pure package imports %s: %s", path, why)
			}
		}
	}
	ast.Inspect(f.ast, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			complain(n, "pure package starts a goroutine")
		case *ast.ChanType:
			complain(n, "pure package has a channel")
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && f.imports("time") && slices.Contains(impureTime, n.Sel.Name) {
				complain(n, "pure package calls time.%s: time is passed in", n.Sel.Name)
			}
		}
		return true
	})
	return complaints
}

func TestPurePackagesComplains(t *testing.T) {
	f, err := parseGo("p.go", []byte(`package p
import (
	"os"
	"sync/atomic"
	"time"
)
var d time.Duration = time.Second
func f() {
	go f()
	_ = make(chan int)
	_ = time.Now()
}`))
	if err != nil {
		t.Fatal(err)
	}
	expect(t, checkPure(f), "p.go:3:2: pure package imports os", "imports sync/atomic",
		"p.go:9:2: pure package starts a goroutine", "has a channel", "calls time.Now")
}
