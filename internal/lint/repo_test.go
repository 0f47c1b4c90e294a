package lint

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

const module = "github.com/sluicemq/sluice"

// root is the repository, seen from this package's directory, where tests run.
const root = "../.."

// skippedDirs aren't ours to check: caches, what tools made, test inputs.
var skippedDirs = []string{".git", ".bin", "node_modules", "sluice-data", "testdata", "__pycache__"}

// textFiles returns every text file of the repository by its path below root,
// with forward slashes.
var textFiles = sync.OnceValues(func() (map[string][]byte, error) {
	files := make(map[string][]byte)
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // removed meanwhile
			return nil
		case err != nil:
			return err
		case d.IsDir() && slices.Contains(skippedDirs, d.Name()):
			return filepath.SkipDir
		case !d.Type().IsRegular(), d.Name() == ".git": // a file in a linked worktree
			return nil
		}
		info, err := d.Info()
		if err != nil || info.Size() > 1<<20 {
			return nil // removed meanwhile, or no source
		}
		b, err := os.ReadFile(p)
		if err != nil || bytes.IndexByte(b, 0) >= 0 {
			return nil // removed meanwhile, or no text
		}
		rel, err := filepath.Rel(root, p)
		files[filepath.ToSlash(rel)] = b
		return err
	})
	return files, err
})

func text(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// goFile is a parsed file of the repository.
type goFile struct {
	path  string
	fset  *token.FileSet
	ast   *ast.File
	lines int
}

func (f *goFile) isTest() bool { return strings.HasSuffix(f.path, "_test.go") }

// imports reports whether the file imports exactly path.
func (f *goFile) imports(path string) bool {
	return slices.ContainsFunc(f.ast.Imports, func(i *ast.ImportSpec) bool {
		return i.Path.Value == `"`+path+`"`
	})
}

func parseGo(path string, src []byte) (*goFile, error) {
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, path, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	return &goFile{path: path, fset: fset, ast: f, lines: bytes.Count(src, []byte("\n"))}, nil
}

// goFiles returns all Go files of the repository, in the order of their paths.
var goFiles = sync.OnceValues(func() ([]*goFile, error) {
	texts, err := textFiles()
	if err != nil {
		return nil, err
	}
	var files []*goFile
	for path, src := range texts {
		if !strings.HasSuffix(path, ".go") {
			continue
		}
		f, err := parseGo(path, src)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	slices.SortFunc(files, func(a, b *goFile) int { return strings.Compare(a.path, b.path) })
	return files, nil
})

func mustGoFiles(t *testing.T) []*goFile {
	t.Helper()
	files, err := goFiles()
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// goPackage is what the go command says of a package.
type goPackage struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

// path is the package's directory below the module.
func (p *goPackage) path() string { return strings.TrimPrefix(p.ImportPath, module+"/") }

// ours returns the packages of sluice among imports, by directory.
func ours(imports []string) []string {
	var out []string
	for _, i := range imports {
		if rest, ok := strings.CutPrefix(i, module+"/"); ok {
			out = append(out, rest)
		}
	}
	return out
}

// goPackages lists the module's packages. With -e, so that a package that does
// not compile is reported by the compiler and not here.
var goPackages = sync.OnceValues(func() ([]*goPackage, error) {
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, errors.Join(err, errors.New(stderr.String()))
	}
	var pkgs []*goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		p := new(goPackage)
		err := dec.Decode(p)
		if errors.Is(err, io.EOF) {
			return pkgs, nil
		}
		if err != nil {
			return nil, err
		}
		pkgs = append(pkgs, p)
	}
})

func mustGoPackages(t *testing.T) []*goPackage {
	t.Helper()
	pkgs, err := goPackages()
	if err != nil {
		t.Fatal(err)
	}
	return pkgs
}

// report fails the test with every complaint.
func report(t *testing.T, complaints []string) {
	t.Helper()
	for _, c := range complaints {
		t.Error(c)
	}
}

// expect fails the test unless there is one complaint for each of want, in
// order, that contains it.
func expect(t *testing.T, got []string, want ...string) {
	t.Helper()
	ok := len(got) == len(want)
	for i := 0; ok && i < len(want); i++ {
		ok = strings.Contains(got[i], want[i])
	}
	if !ok {
		t.Errorf("complaints:\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}
