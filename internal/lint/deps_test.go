package lint

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDependencies checks that docs/dependencies.md explains exactly the modules
// that sluice's own code imports, in the versions that go.mod requires.
func TestDependencies(t *testing.T) {
	used := map[string]bool{}
	for _, p := range mustGoPackages(t) {
		for _, i := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			used[i] = true
		}
	}
	report(t, checkDependencies(text(t, "docs/dependencies.md"), text(t, "go.mod"), slices.Collect(maps.Keys(used))))
}

var (
	requirement = regexp.MustCompile(`(?m)^(?:require )?\s*([a-zA-Z0-9.\-_/]+\.[a-zA-Z0-9.\-_/]+) (v\S+)`)
	explained   = regexp.MustCompile("(?m)^\\| `([^` ]+)` *\\| *(v[^ |]+) *\\|")
)

func checkDependencies(doc, gomod string, imports []string) (complaints []string) {
	direct := map[string]string{}
	for _, m := range requirement.FindAllStringSubmatch(gomod, -1) {
		if slices.ContainsFunc(imports, func(i string) bool { return i == m[1] || strings.HasPrefix(i, m[1]+"/") }) {
			direct[m[1]] = m[2]
		}
	}
	for _, m := range explained.FindAllStringSubmatch(doc, -1) {
		switch version, ok := direct[m[1]]; {
		case !ok:
			complaints = append(complaints, "docs/dependencies.md: "+m[1]+" is imported nowhere")
		case version != m[2]:
			complaints = append(complaints, fmt.Sprintf("docs/dependencies.md: %s is %s in go.mod", m[1], version))
		}
		delete(direct, m[1])
	}
	for _, m := range slices.Sorted(maps.Keys(direct)) {
		complaints = append(complaints, "docs/dependencies.md doesn't explain "+m)
	}
	return complaints
}

func TestDependenciesComplains(t *testing.T) {
	gomod := "module m.org/x\n\ngo 1.26.0\n\nrequire (\n\ta.org/b v1.0.0\n\ta.org/c/v3 v3.1.0 // indirect\n\ta.org/d v0.1.0 // indirect\n)\n\nrequire a.org/e v0.2.0\n"
	doc := "| module | version | |\n|---|---|---|\n| `a.org/b` | v1.0.1 | x |\n| `a.org/gone` | v1.0.0 | x |\n"
	expect(t, checkDependencies(doc, gomod, []string{"fmt", "a.org/b/sub", "a.org/c/v3", "a.org/e"}),
		"a.org/b is v1.0.0", "a.org/gone is imported nowhere", "doesn't explain a.org/c/v3", "doesn't explain a.org/e")
}
