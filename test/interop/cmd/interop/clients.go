package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

const goClient = "github.com/rabbitmq/amqp091-go"

// runGo runs the tests that the Go client ships, integration tests included, in
// the version that sluice itself uses.
func runGo(ctx context.Context, e *env) (client string, outcomes []outcome, err error) {
	dir, version, err := copyGoClient(ctx, e)
	client = "amqp091-go " + version
	if err != nil {
		return client, nil, err
	}
	text, err := os.ReadFile(filepath.Join(e.root, "test", "interop", "go", "skip.txt"))
	if err != nil {
		return client, nil, err
	}
	skips, err := parseSkips(string(text))
	if err != nil {
		return client, nil, err
	}
	environ := []string{"AMQP_URL=" + e.url, "GOWORK=off", "GOFLAGS=-mod=mod"}
	list, err := output(ctx, dir, environ, "go", "test", "-tags", "integration", "-list", "^Test", ".")
	if err != nil {
		return client, nil, err
	}
	existing := strings.Fields(string(list))
	names := make([]string, 0, len(skips))
	for _, s := range skips {
		if !slices.Contains(existing, s.name) {
			s = outcome{failed, s.name, "skip.txt names it, but there is no such test"}
		}
		outcomes = append(outcomes, s)
		names = append(names, s.name)
	}
	args := []string{"test", "-tags", "integration", "-count", "1", "-json", "-timeout", "7m"}
	if len(names) > 0 {
		args = append(args, "-skip", "^("+strings.Join(names, "|")+")$")
	}
	out, runErr := output(ctx, dir, environ, "go", append(args, ".")...)
	ran, err := tests(func(b []byte) ([]outcome, error) { return parseTest2JSON(bytes.NewReader(b)) }, out, runErr)
	return client, append(outcomes, ran...), err
}

// copyGoClient copies the module out of the cache, which is read-only and lacks
// what the module's own tests depend on.
func copyGoClient(ctx context.Context, e *env) (dir, version string, err error) {
	out, err := output(ctx, e.root, nil, "go", "mod", "download", "-json", goClient)
	if err != nil {
		return "", "", err
	}
	var mod struct{ Version, Dir string }
	if err := json.Unmarshal(out, &mod); err != nil {
		return "", "", err
	}
	dir = filepath.Join(e.work, "amqp091-go")
	if err := os.CopyFS(dir, os.DirFS(mod.Dir)); err != nil {
		return "", mod.Version, err
	}
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if d.IsDir() {
			mode = 0o755
		}
		return os.Chmod(p, mode)
	})
	return dir, mod.Version, err
}

// parseSkips reads lines "name reason", '#' begins a comment line. A test without
// a reason is an error.
func parseSkips(text string) (skips []outcome, err error) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, reason, _ := strings.Cut(line, " ")
		if reason == "" || !regexp.MustCompile(`^Test\w+$`).MatchString(name) {
			return nil, fmt.Errorf("skip.txt: %q is not a test and a reason", line)
		}
		skips = append(skips, outcome{skipped, name, reason})
	}
	return skips, nil
}

func parseTAPBytes(b []byte) ([]outcome, error) { return parseTAP(bytes.NewReader(b)) }

// runPython runs our checks over pika.
func runPython(ctx context.Context, e *env) (client string, outcomes []outcome, err error) {
	python, version, err := e.python(ctx)
	client = "pika " + version
	if err != nil {
		return client, nil, err
	}
	out, runErr := output(ctx, e.root, []string{"AMQP_URL=" + e.url, "PYTHONDONTWRITEBYTECODE=1"},
		python, filepath.Join("test", "interop", "python", "run.py"))
	outcomes, err = tests(parseTAPBytes, out, runErr)
	return client, outcomes, err
}

// python returns the interpreter of a virtual environment that has what
// requirements.txt pins, and the version of pika.
func (e *env) python(ctx context.Context) (interpreter, version string, err error) {
	if err := need("python3", "python3 python3-venv"); err != nil {
		return "", "", err
	}
	requirements := filepath.Join(e.root, "test", "interop", "python", "requirements.txt")
	text, err := os.ReadFile(requirements)
	if err != nil {
		return "", "", err
	}
	if m := regexp.MustCompile(`(?m)^pika==(\S+)`).FindSubmatch(text); m != nil {
		version = string(m[1])
	}
	which, err := output(ctx, e.root, nil, "python3", "-c", "import sys; print(sys.executable, sys.version)")
	if err != nil {
		return "", version, err
	}
	dir, err := e.install("python", [][]byte{text, which}, func(dir string) error {
		if _, err := output(ctx, e.root, nil, "python3", "-m", "venv", dir); err != nil {
			return fmt.Errorf("no virtual environment (on Debian: apt-get install python3-venv): %w", err)
		}
		_, err := output(ctx, e.root, nil, filepath.Join(dir, "bin", "python"), "-m", "pip", "install",
			"--quiet", "--disable-pip-version-check", "--require-hashes", "--requirement", requirements)
		return err
	})
	return filepath.Join(dir, "bin", "python"), version, err
}

// runNode runs our checks over amqplib.
func runNode(ctx context.Context, e *env) (client string, outcomes []outcome, err error) {
	modules, version, err := e.node(ctx)
	client = "amqplib " + version
	if err != nil {
		return client, nil, err
	}
	// Node looks for modules from the program's directory up.
	dir := filepath.Join(e.work, "node")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(e.root, "test", "interop", "node"))); err != nil {
		return client, nil, err
	}
	if err := os.Symlink(modules, filepath.Join(dir, "node_modules")); err != nil {
		return client, nil, err
	}
	out, runErr := output(ctx, dir, []string{"AMQP_URL=" + e.url}, "node", "--test-reporter=tap", "checks.js")
	outcomes, err = tests(parseTAPBytes, out, runErr)
	return client, outcomes, err
}

// node returns a node_modules directory with what package-lock.json pins, and
// the version of amqplib.
func (e *env) node(ctx context.Context) (modules, version string, err error) {
	if err := errors.Join(need("node", "nodejs"), need("npm", "npm")); err != nil {
		return "", "", err
	}
	source := filepath.Join(e.root, "test", "interop", "node")
	inputs := make([][]byte, 0, 3)
	for _, name := range []string{"package.json", "package-lock.json", ".npmrc"} {
		b, err := os.ReadFile(filepath.Join(source, name))
		if err != nil {
			return "", "", err
		}
		inputs = append(inputs, b)
	}
	var manifest struct{ Dependencies map[string]string }
	if err := json.Unmarshal(inputs[0], &manifest); err != nil {
		return "", "", err
	}
	version = manifest.Dependencies["amqplib"]
	dir, err := e.install("node", inputs, func(dir string) error {
		for i, name := range []string{"package.json", "package-lock.json", ".npmrc"} {
			if err := os.WriteFile(filepath.Join(dir, name), inputs[i], 0o644); err != nil {
				return err
			}
		}
		_, err := output(ctx, dir, nil, "npm", "ci", "--silent")
		return err
	})
	return filepath.Join(dir, "node_modules"), version, err
}
