package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// documentedURL stands in every example that we run; it is replaced by the
// broker's.
const documentedURL = "amqp://guest:guest@127.0.0.1:5672/"

// example is a code block of a document: one whose info string is a language and
// "run". A block "text output" after it says what it prints.
type example struct {
	document string
	line     int // of the block's first line
	language string
	code     string
	prints   *string // nil: the document doesn't say
}

func (x *example) String() string { return fmt.Sprintf("%s:%d (%s)", x.document, x.line, x.language) }

// runDocuments runs the examples of README.md and docs, in the order that they
// stand there.
func runDocuments(ctx context.Context, e *env) (client string, outcomes []outcome, err error) {
	documents, err := filepath.Glob(filepath.Join(e.root, "docs", "*.md"))
	if err != nil {
		return "", nil, err
	}
	for _, path := range append([]string{filepath.Join(e.root, "README.md")}, documents...) {
		text, err := os.ReadFile(path)
		if err != nil {
			return "", nil, err
		}
		name, err := filepath.Rel(e.root, path)
		if err != nil {
			return "", nil, err
		}
		examples, err := parseExamples(name, string(text))
		if err != nil {
			return "", nil, err
		}
		for _, x := range examples {
			o := outcome{passed, x.String(), ""}
			if err := x.run(ctx, e); err != nil {
				o.status, o.note = failed, err.Error()
			}
			outcomes = append(outcomes, o)
		}
	}
	return "", outcomes, nil
}

// parseExamples finds the examples of a document.
func parseExamples(document, text string) (examples []example, err error) {
	var info []string
	var block strings.Builder
	inside, began := false, 0
	for number, line := range strings.Split(text, "\n") {
		fence, isFence := strings.CutPrefix(line, "```")
		switch {
		case isFence && !inside:
			inside, began, info = true, number+2, strings.Fields(fence)
			block.Reset()
		case isFence && strings.TrimSpace(fence) != "":
			return nil, fmt.Errorf("%s:%d: a block begins inside another", document, number+1)
		case isFence:
			inside = false
			switch code := block.String(); {
			case slices.Equal(info, []string{"text", "output"}):
				if len(examples) == 0 || examples[len(examples)-1].prints != nil {
					return nil, fmt.Errorf("%s:%d: output of nothing", document, began)
				}
				examples[len(examples)-1].prints = &code
			case len(info) == 2 && info[1] == "run":
				examples = append(examples, example{document: document, line: began, language: info[0], code: code})
			}
		case inside:
			block.WriteString(line + "\n")
		}
	}
	if inside {
		return nil, fmt.Errorf("%s:%d: the block doesn't end", document, began)
	}
	return examples, nil
}

// run runs an example and compares what it prints.
func (x *example) run(ctx context.Context, e *env) error {
	if !strings.Contains(x.code, documentedURL) {
		return errors.New("it doesn't connect to " + documentedURL)
	}
	code := strings.ReplaceAll(x.code, documentedURL, e.url)
	dir, err := os.MkdirTemp(e.work, "example-")
	if err != nil {
		return err
	}
	var printed []byte
	switch x.language {
	case "go":
		// From the repository's root, so that its go.mod says where packages are.
		printed, err = runFile(ctx, e.root, dir, "main.go", code, "go", "run")
	case "python":
		var python string
		if python, _, err = e.python(ctx); err == nil {
			printed, err = runFile(ctx, dir, dir, "example.py", code, python)
		}
	case "js":
		var modules string
		if modules, _, err = e.node(ctx); err == nil {
			err = os.Symlink(modules, filepath.Join(dir, "node_modules"))
		}
		if err == nil {
			printed, err = runFile(ctx, dir, dir, "example.js", code, "node")
		}
	case "sh":
		err = x.prepareShell(ctx, e)
		if err == nil {
			path := "PATH=" + filepath.Dir(e.binary) + string(os.PathListSeparator) + os.Getenv("PATH")
			printed, err = output(ctx, dir, []string{path}, "sh", "-e", "-c", code)
		}
	default:
		return errors.New("no way to run " + x.language)
	}
	if err != nil {
		return fmt.Errorf("%w\nit printed:\n%s", err, printed)
	}
	if x.prints != nil && string(printed) != *x.prints {
		return fmt.Errorf("it printed\n%s\nthe document says\n%s", printed, *x.prints)
	}
	return nil
}

// prepareShell builds sluice for the shell examples when no broker of ours did.
func (x *example) prepareShell(ctx context.Context, e *env) error {
	if e.binary != "" {
		return nil
	}
	binary := filepath.Join(e.work, "bin", "sluice")
	if _, err := output(ctx, e.root, nil, "go", "build", "-o", binary, "./cmd/sluice"); err != nil {
		return err
	}
	e.binary = binary
	return nil
}

// runFile writes code into dir and runs the command with its path, from directory from.
func runFile(ctx context.Context, from, dir, name, code string, args ...string) ([]byte, error) {
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(code), 0o644); err != nil {
		return nil, err
	}
	return output(ctx, from, nil, args[0], append(args[1:], path)...)
}
