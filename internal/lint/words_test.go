package lint

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// forbidden are texts that no file may have. The patterns are written so that they
// don't match themselves. A file is searched only if it contains a hint, which is
// much quicker.
var forbidden = []struct {
	hints   []string
	pattern *regexp.Regexp
	why     string
}{
	{
		[]string{"TO" + "DO", "FIX" + "ME", "X" + "XX", "HA" + "CK"},
		regexp.MustCompile(`\b(TO[D]O|FIX[M]E|X[X]X|HA[C]K)\b`),
		"finish it, or file an issue and say what is missing in the documents",
	},
	{
		[]string{"golang.o" + "rg", "npm" + "js", "pyp" + "i", "python" + "hosted", "deb.deb" + "ian", "crates.i" + "o"},
		regexp.MustCompile(`\b(proxy|sum)\.golang[.]org|registry\.npmjs[.]|\bpypi[.]org|pythonhosted[.]org|deb\.debian[.]org|static\.crates[.]io`),
		"the user's tools know their package registries",
	},
	{
		[]string{"/ro" + "ot/", "/ho" + "me/", "/wo" + "rk/"},
		regexp.MustCompile(`(^|[\s"'=(:])/(root|home|work)[/]`),
		"a path of somebody's machine",
	},
	{
		[]string{"mechanisms", "design.m" + "d", "style.m" + "d"},
		regexp.MustCompile(`\b(mechanisms [AB][0-9]|(design|mechanisms|style)\.m[d]\b)`),
		"a document that isn't in the repository",
	},
	{
		[]string{"<<<<<<" + "<", ">>>>>>" + ">", "======" + "="},
		regexp.MustCompile(`(?m)^(<{7}|>{7}|={7})($| )`),
		"a merge conflict",
	},
}

func TestForbiddenWords(t *testing.T) {
	files, err := textFiles()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range slices.Sorted(maps.Keys(files)) {
		report(t, checkWords(path, string(files[path])))
	}
}

func checkWords(path, text string) (complaints []string) {
	for _, f := range forbidden {
		if !slices.ContainsFunc(f.hints, func(h string) bool { return strings.Contains(text, h) }) {
			continue
		}
		for _, at := range f.pattern.FindAllStringIndex(text, -1) {
			line := 1
			for _, c := range text[:at[0]] {
				if c == '\n' {
					line++
				}
			}
			complaints = append(complaints, fmt.Sprintf("%s:%d: %q: %s", path, line, text[at[0]:at[1]], f.why))
		}
	}
	return complaints
}

func TestForbiddenWordsComplains(t *testing.T) {
	expect(t, checkWords("a", "fine\n// TO"+"DO later"), "a:2:")
	expect(t, checkWords("a", "https://registry.np"+"mjs.org/x"), "registries")
	expect(t, checkWords("a", "see /ro"+"ot/x"), "somebody's machine")
	expect(t, checkWords("a", "see mechanisms A"+"5"), "isn't in the repository")
	expect(t, checkWords("a", "<<<<<<"+"< HEAD"), "merge conflict")
	expect(t, checkWords("a", "TODOS, /roots, example.org, a workaround, /var/lib/work/x"))
}
