package torture

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestKillTakesTheWholeGroup starts a process that starts another one; a kill
// must leave neither.
func TestKillTakesTheWholeGroup(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	var log bytes.Buffer
	b := &broker{command: []string{"/bin/sh", "-c", "sleep 1000 & echo $! >" + pidFile + ".new; mv " + pidFile + ".new " + pidFile + "; wait"}, log: &log}
	if err := b.start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	for deadline := time.Now().Add(10 * time.Second); ; {
		text, err := os.ReadFile(pidFile)
		if err == nil {
			if pid, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
				t.Fatal(err)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the process doesn't start")
		}
	}
	if err := b.alive(); err != nil {
		t.Error(err)
	}
	before := time.Now()
	if at := b.kill(); at.Before(before) {
		t.Errorf("killed at %v, before it was asked for", at)
	}
	if err := b.alive(); err == nil {
		t.Error("alive after the kill")
	}
	// The child is gone or, where nobody reaps orphans, a zombie.
	for deadline := time.Now().Add(10 * time.Second); syscall.Kill(pid, 0) == nil && !zombie(pid); {
		if time.Now().After(deadline) {
			t.Fatal("the child survived")
		}
	}
}

func zombie(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err != nil || strings.Contains(string(stat), ") Z ")
}

// TestBrokerThatEndsByItself is told apart from one that doesn't answer.
func TestBrokerThatEndsByItself(t *testing.T) {
	port, err := FreePort()
	if err != nil {
		t.Fatal(err)
	}
	url := "amqp://127.0.0.1:" + strconv.Itoa(port) + "/"
	b := &broker{command: []string{"/bin/sh", "-c", "exit 3"}, url: url}
	if err := b.start(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.ready(t.Context(), time.Minute); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("got %v", err)
	}
	b = &broker{command: []string{"/bin/sleep", "1000"}, url: url}
	if err := b.start(); err != nil {
		t.Fatal(err)
	}
	defer b.kill()
	if _, err := b.ready(t.Context(), 50*time.Millisecond); err == nil || !strings.Contains(err.Error(), "doesn't serve") {
		t.Errorf("got %v", err)
	}
}

// TestFailedStartIsAnError: a broker that never came up wasn't tested, which is
// no verdict on it.
func TestFailedStartIsAnError(t *testing.T) {
	port, err := FreePort()
	if err != nil {
		t.Fatal(err)
	}
	_, err = Run(t.Context(), Config{Command: []string{"/bin/false"}, Port: port})
	if err == nil || !strings.Contains(err.Error(), "first start: the broker ended by itself") {
		t.Errorf("got %v", err)
	}
	if _, err = Run(t.Context(), Config{MinUp: time.Hour}); err == nil || !strings.Contains(err.Error(), "above the greatest") {
		t.Errorf("got %v", err)
	}
}

func TestReportShowsEveryViolation(t *testing.T) {
	r := &Report{
		Seed: 4711, Kills: 30, Recovery: []time.Duration{time.Second, 2 * time.Second},
		Counts: Counts{
			Lost: 101, Unflagged: 102, Resurrected: 50, AckedNoKill: 40, LeftInQueues: 13, OverWindow: 104,
			OutOfOrder: 105, Damaged: 106, Unsettled: 107, CutOff: 108, RestartFailed: 109,
		},
		Violations: []string{"queue 1 publisher 2 seq 3 confirmed and never received"},
	}
	var b strings.Builder
	if err := r.Print(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"4711", "VIOLATION: queue 1 publisher 2", "101", "102", "103", "104", "105", "106", "107", "108", "109", "longest 2s"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in:\n%s", want, b.String())
		}
	}
	if got, want := r.Counts.Violations(), 101+102+103+104+105+106+107+108+109; got != want {
		t.Errorf("%d violations, want %d", got, want)
	}
}
