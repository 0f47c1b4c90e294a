package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// command prepares a program in a process group of its own, so that what it
// started ends with it when ctx does.
func command(ctx context.Context, dir string, environ []string, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), environ...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// output runs a program and returns what it printed. A program that fails returns
// its output too, with an error that quotes the end of standard error.
func output(ctx context.Context, dir string, environ []string, name string, args ...string) ([]byte, error) {
	cmd := command(ctx, dir, environ, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), errors.Join(err, ctx.Err()), tail(stderr.String(), 30))
	}
	return stdout.Bytes(), err
}

// tests runs a test program, which exits non-zero when a test fails, and parses
// what it prints. Only what the parser can't see is an error.
func tests(parse func([]byte) ([]outcome, error), out []byte, runErr error) ([]outcome, error) {
	outcomes, err := parse(out)
	for _, o := range outcomes {
		if o.status == failed {
			return outcomes, err
		}
	}
	return outcomes, errors.Join(err, runErr)
}

// tail returns the last n lines of s.
func tail(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// need complains if a program is missing, and says what Debian calls it.
func need(program, debian string) error {
	if _, err := exec.LookPath(program); err != nil {
		return fmt.Errorf("%s is missing (on Debian: apt-get install %s)", program, debian)
	}
	return nil
}

// install has fill make a directory below the cache, unless it was made from the
// same inputs before. What failed once is not tried again in this run.
func (e *env) install(name string, inputs [][]byte, fill func(dir string) error) (string, error) {
	sum := sha256.Sum256(bytes.Join(inputs, []byte{0}))
	dir := filepath.Join(e.cache, name+"-"+hex.EncodeToString(sum[:8]))
	done := filepath.Join(dir, ".complete")
	if _, err := os.Stat(done); err == nil {
		return dir, nil
	}
	if err := e.failed[name]; err != nil {
		return "", err
	}
	fmt.Fprintf(e.out, "installing %s\n", name)
	err := os.RemoveAll(dir)
	if err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	if err == nil {
		err = fill(dir)
	}
	if err != nil {
		e.failed[name] = err
		return "", err
	}
	return dir, os.WriteFile(done, nil, 0o644)
}
