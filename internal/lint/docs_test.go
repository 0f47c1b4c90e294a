package lint

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const architectureLinesMax = 300

// TestArchitecture checks that the map names each package once and no other,
// and that the document can still be read in one go.
func TestArchitecture(t *testing.T) {
	doc := text(t, "docs/ARCHITECTURE.md")
	if n := strings.Count(doc, "\n"); n > architectureLinesMax {
		t.Errorf("docs/ARCHITECTURE.md has %d lines, the limit is %d", n, architectureLinesMax)
	}
	var pkgs []string
	for _, p := range mustGoPackages(t) {
		pkgs = append(pkgs, p.path())
	}
	report(t, checkMap(doc, pkgs))
}

// mapRow is a line of the map: | `path` | what it is |.
var mapRow = regexp.MustCompile("^\\| `([a-z0-9/]+)` *\\| *(\\S.*)\\|$")

func checkMap(doc string, pkgs []string) (complaints []string) {
	seen := map[string]bool{}
	for line := range strings.Lines(section(doc, "Map")) {
		m := mapRow.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		switch {
		case seen[m[1]]:
			complaints = append(complaints, "map: "+m[1]+" stands there twice")
		case !slices.Contains(pkgs, m[1]):
			complaints = append(complaints, "map: "+m[1]+" is no package")
		}
		seen[m[1]] = true
	}
	for _, p := range pkgs {
		if !seen[p] {
			complaints = append(complaints, "map: package "+p+" is missing")
		}
	}
	return complaints
}

// placeInCode is how the path of a message names a step: file and function.
var placeInCode = regexp.MustCompile("`([a-z0-9/_]+\\.go)` `(\\w+)`")

// TestPath checks that the functions named along the path of a message exist.
func TestPath(t *testing.T) {
	files, err := textFiles()
	if err != nil {
		t.Fatal(err)
	}
	complaints, n := checkPlaces(text(t, "docs/ARCHITECTURE.md"), files)
	report(t, complaints)
	if n < 10 {
		t.Errorf("only %d places are named in docs/ARCHITECTURE.md: has their form changed?", n)
	}
}

func checkPlaces(doc string, files map[string][]byte) (complaints []string, n int) {
	for _, m := range placeInCode.FindAllStringSubmatch(doc, -1) {
		n++
		if !regexp.MustCompile(`(?m)^func (\([^)]*\) )?` + m[2] + `[\[(]`).Match(files[m[1]]) {
			complaints = append(complaints, fmt.Sprintf("docs/ARCHITECTURE.md: there is no function %s in %s", m[2], m[1]))
		}
	}
	return complaints, n
}

func TestPathComplains(t *testing.T) {
	files := map[string][]byte{"a/b.go": []byte("package a\nfunc (x *t) run() {}\nfunc free[T any](t T) {}\n")}
	got, n := checkPlaces("`a/b.go` `run`, `a/b.go` `free`, `a/b.go` `gone`, `a/c.go` `run`", files)
	expect(t, got, "no function gone in a/b.go", "no function run in a/c.go")
	if n != 4 {
		t.Errorf("%d places", n)
	}
}

// section returns what stands under a heading of the second level.
func section(doc, heading string) string {
	_, after, _ := strings.Cut(doc, "\n## "+heading+"\n")
	body, _, _ := strings.Cut(after, "\n## ")
	return body
}

func TestArchitectureComplains(t *testing.T) {
	doc := "# A\n\n## Map\n\n| package | |\n|---|---|\n| `a` | first |\n| `a` | again |\n| `b/c` | gone |\n\n## Next\n| `d` | not in the map |\n"
	expect(t, checkMap(doc, []string{"a", "d"}), "a stands there twice", "b/c is no package", "package d is missing")
}

// TestReadme checks that the README opens with the two commands that matter.
func TestReadme(t *testing.T) {
	report(t, checkReadme(text(t, "README.md")))
}

func checkReadme(doc string) (complaints []string) {
	_, rest, _ := strings.Cut(doc, "\n```")
	_, block, _ := strings.Cut(rest, "\n")
	block, _, _ = strings.Cut(block, "\n```")
	for _, command := range []string{"go run ./cmd/sluice serve", "go test ./..."} {
		if !slices.ContainsFunc(strings.Split(block, "\n"), func(line string) bool {
			line, _, _ = strings.Cut(line, "#")
			return strings.TrimSpace(line) == command
		}) {
			complaints = append(complaints, fmt.Sprintf("README.md: the first code block lacks %q", command))
		}
	}
	return complaints
}

func TestReadmeComplains(t *testing.T) {
	expect(t, checkReadme("# s\n\n```sh\ngo run ./cmd/sluice serve # starts\n```\n\n```sh\ngo test ./...\n```\n"), `lacks "go test ./..."`)
}

func TestChangelog(t *testing.T) {
	report(t, checkChangelog(text(t, "CHANGELOG.md")))
}

var (
	releaseHeading = regexp.MustCompile(`^\[(\d+)\.(\d+)\.(\d+)\] - \d{4}-\d{2}-\d{2}$`)
	changeKinds    = []string{"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
)

// checkChangelog knows the shape of keepachangelog.com: [Unreleased] first,
// then releases, newest first, each with its changes under the usual headings.
func checkChangelog(doc string) (complaints []string) {
	complain := func(format string, args ...any) {
		complaints = append(complaints, "CHANGELOG.md: "+fmt.Sprintf(format, args...))
	}
	parts := strings.Split("\n"+doc, "\n## ")
	if !strings.HasPrefix(doc, "# Changelog\n") {
		complain("must begin with '# Changelog'")
	}
	var last []int
	for i, part := range parts[1:] {
		title, body, _ := strings.Cut(part, "\n")
		m := releaseHeading.FindStringSubmatch(title)
		switch {
		case i == 0 && title != "[Unreleased]":
			complain("the first section must be [Unreleased], not %q", title)
		case i > 0 && m == nil:
			complain("%q is not of the form [1.2.3] - 2006-01-02", title)
		case i > 0:
			var version []int
			for _, s := range m[1:] {
				var n int
				_, _ = fmt.Sscan(s, &n) // the pattern has digits only
				version = append(version, n)
			}
			if last != nil && slices.Compare(version, last) >= 0 {
				complain("%q must be older than the release above it", title)
			}
			last = version
		}
		for j, kind := range strings.Split("\n"+body, "\n### ")[1:] {
			name, list, _ := strings.Cut(kind, "\n")
			if !slices.Contains(changeKinds, name) {
				complain("%s: heading %d is %q, not one of %v", title, j+1, name, changeKinds)
			}
			if !strings.HasPrefix(strings.TrimSpace(list), "- ") {
				complain("%s: %s has no list", title, name)
			}
		}
		if i > 0 && !strings.Contains(body, "\n### ") {
			complain("%s says nothing", title)
		}
	}
	if len(parts) == 1 {
		complain("has no section")
	}
	return complaints
}

func TestChangelogComplains(t *testing.T) {
	expect(t, checkChangelog("# Changelog\n"), "no section")
	expect(t, checkChangelog("# Changes\n\n## [0.1.0] - 2026-01-01\n"), "must begin", "must be [Unreleased]")
	expect(t, checkChangelog("# Changelog\n\n## [Unreleased]\n\n### Improved\n\n- x\n\n## [0.1.0] - 2026-01-01\n\n### Added\n\nx\n\n## [0.2.0] - 2025-01-01\n\n## 0.0.1\n\n### Fixed\n- y\n"),
		`heading 1 is "Improved"`, "Added has no list", "must be older", "says nothing", "not of the form")
}

// TestDecisions checks that the index of docs/adr names exactly the records
// that exist, numbered without gaps, and that each has its four parts.
func TestDecisions(t *testing.T) {
	files, err := textFiles()
	if err != nil {
		t.Fatal(err)
	}
	records := map[string]string{}
	for p, b := range files {
		if path.Dir(p) == "docs/adr" && path.Base(p) != "README.md" {
			records[path.Base(p)] = string(b)
		}
	}
	report(t, checkDecisions(text(t, "docs/adr/README.md"), records))
}

func checkDecisions(index string, records map[string]string) (complaints []string) {
	for i, name := range slices.Sorted(maps.Keys(records)) {
		if !strings.HasPrefix(name, fmt.Sprintf("%04d-", i+1)) {
			complaints = append(complaints, fmt.Sprintf("docs/adr/%s: the next number is %04d", name, i+1))
		}
		if !strings.Contains(index, "]("+name+")") {
			complaints = append(complaints, "docs/adr/README.md doesn't list "+name)
		}
		for _, part := range []string{"\nStatus: ", "\n## Context\n", "\n## Decision\n", "\n## Consequences\n"} {
			if !strings.Contains(records[name], part) {
				complaints = append(complaints, fmt.Sprintf("docs/adr/%s has no %q", name, strings.TrimSpace(part)))
			}
		}
	}
	return complaints
}

func TestDecisionsComplains(t *testing.T) {
	good := "# 1\n\nStatus: accepted\n\n## Context\n\nx\n\n## Decision\n\nx\n\n## Consequences\n\nx\n"
	expect(t, checkDecisions("[1](0001-a.md)", map[string]string{"0001-a.md": good, "0003-b.md": "\nStatus: x\n## Context\n## Decision\n"}),
		"next number is 0002", "doesn't list 0003-b.md", `no "## Consequences"`)
}

// link matches a Markdown link to something in the repository.
var link = regexp.MustCompile(`\]\(([^)#:\s]+)(#[^)\s]*)?\)`)

// TestLinks checks that what documents link to exists.
func TestLinks(t *testing.T) {
	files, err := textFiles()
	if err != nil {
		t.Fatal(err)
	}
	exists := func(p string) bool {
		if _, ok := files[p]; ok {
			return true
		}
		for f := range files {
			if strings.HasPrefix(f, strings.TrimSuffix(p, "/")+"/") {
				return true
			}
		}
		return false
	}
	for p, b := range files {
		if path.Ext(p) == ".md" {
			report(t, checkLinks(p, string(b), exists))
		}
	}
}

func checkLinks(file, doc string, exists func(string) bool) (complaints []string) {
	for _, m := range link.FindAllStringSubmatch(doc, -1) {
		if target := path.Join(path.Dir(file), m[1]); !exists(target) {
			complaints = append(complaints, fmt.Sprintf("%s links to %s, which doesn't exist", file, target))
		}
	}
	return complaints
}

func TestLinksComplains(t *testing.T) {
	doc := "[a](b.md#part) [c](../d.md) [web](https://example.org/x) [here](#part)"
	expect(t, checkLinks("docs/a.md", doc, func(p string) bool { return p == "docs/b.md" }), "links to d.md")
}
