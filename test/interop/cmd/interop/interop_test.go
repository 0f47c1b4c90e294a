package main

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseTAP(t *testing.T) {
	got, err := parseTAP(strings.NewReader("TAP version 13\n" +
		"# Subtest: a\nok 1 - a\n  ---\n  duration_ms: 1\n  ...\n" +
		"not ok 2 - b: c\n#  why\n#  indeed\n" +
		"ok 3 - d # SKIP no reason\n" +
		"1..3\n# tests 3\n"))
	want := []outcome{
		{passed, "a", ""},
		{failed, "b: c", "  why\n  indeed\n"},
		{skipped, "d", "no reason"},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, broken := range []string{"", "ok 1 - a\n", "ok 1 - a\n1..2\n", "1..x\n"} {
		if _, err := parseTAP(strings.NewReader(broken)); err == nil {
			t.Errorf("%q was accepted", broken)
		}
	}
}

func TestParseTest2JSON(t *testing.T) {
	got, err := parseTest2JSON(strings.NewReader(`
{"Action":"run","Test":"TestA"}
{"Action":"output","Test":"TestA","Output":"fine\n"}
{"Action":"pass","Test":"TestA"}
{"Action":"run","Test":"TestB/sub"}
{"Action":"output","Test":"TestB/sub","Output":"oh\n"}
{"Action":"fail","Test":"TestB/sub"}
{"Action":"fail","Test":"TestB"}
{"Action":"output","Test":"TestC","Output":"why\n"}
{"Action":"skip","Test":"TestC"}
{"Action":"fail"}
`))
	want := []outcome{{passed, "TestA", ""}, {failed, "TestB", "oh\n"}, {skipped, "TestC", "why\n"}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	got, err = parseTest2JSON(strings.NewReader(`{"Action":"output","Output":"panic\n"}` + "\n" + `{"Action":"fail"}`))
	if want := []outcome{{failed, "the package", "panic\n"}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("a package that failed: got %+v, %v", got, err)
	}
	if _, err := parseTest2JSON(strings.NewReader("FAIL")); err == nil {
		t.Error("no JSON was accepted")
	}
}

func TestParseSkips(t *testing.T) {
	got, err := parseSkips("# comment\n\nTestA no broker has it\n")
	if want := []outcome{{skipped, "TestA", "no broker has it"}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, broken := range []string{"TestA", ".* everything"} {
		if _, err := parseSkips(broken); err == nil {
			t.Errorf("%q was accepted", broken)
		}
	}
}

func TestParseExamples(t *testing.T) {
	prints := "hello\n"
	got, err := parseExamples("d.md", "x\n```go run\na\nb\n```\n```sh\nnot run\n```\n\n```text output\nhello\n```\n```js run\nc\n```\n")
	if err != nil || len(got) != 2 {
		t.Fatalf("got %v, %v", got, err)
	}
	if x := got[0]; x.String() != "d.md:3 (go)" || x.code != "a\nb\n" || x.prints == nil || *x.prints != prints {
		t.Errorf("first example: %+v", x)
	}
	if x := got[1]; x.String() != "d.md:14 (js)" || x.code != "c\n" || x.prints != nil {
		t.Errorf("second example: %+v", x)
	}
	for _, broken := range []string{"```go run\na\n", "```text output\nx\n```\n", "```go\n```go\n```\n"} {
		if _, err := parseExamples("d.md", broken); err == nil {
			t.Errorf("%q was accepted", broken)
		}
	}
}

func TestRunExample(t *testing.T) {
	e := &env{work: t.TempDir(), url: "amqp://elsewhere/", binary: "x"}
	const code = "echo amqp://guest:guest@127.0.0.1:5672/\n"
	right, wrong := "amqp://elsewhere/\n", "something else\n"
	for _, c := range []struct {
		example example
		want    string // in the error
	}{
		{example{language: "sh", code: code, prints: &right}, ""},
		{example{language: "sh", code: code}, ""},
		{example{language: "sh", code: code, prints: &wrong}, "the document says\nsomething else"},
		{example{language: "sh", code: code + "false\necho on\n"}, "exit status 1"},
		{example{language: "sh", code: "echo\n"}, "doesn't connect"},
		{example{language: "cobol", code: code}, "no way to run"},
	} {
		err := c.example.run(context.Background(), e)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.example.code, err, c.want)
		}
	}
}

func TestInstall(t *testing.T) {
	e := &env{cache: t.TempDir(), out: io.Discard, failed: map[string]error{}}
	broken := errors.New("no network")
	calls := 0
	attempt := func(err error) func(string) error {
		return func(string) error { calls++; return err }
	}
	for range 2 {
		if _, err := e.install("a", [][]byte{[]byte("1")}, attempt(broken)); !errors.Is(err, broken) {
			t.Errorf("got %v", err)
		}
	}
	if calls != 1 {
		t.Errorf("what failed was tried %d times", calls)
	}
	first, err1 := e.install("b", [][]byte{[]byte("1")}, attempt(nil))
	again, err2 := e.install("b", [][]byte{[]byte("1")}, attempt(nil))
	other, err3 := e.install("b", [][]byte{[]byte("2")}, attempt(nil))
	if err := errors.Join(err1, err2, err3); err != nil || first != again || first == other || calls != 3 {
		t.Errorf("%v; %q, %q, %q after %d calls", err, first, again, other, calls)
	}
}

func TestPrintReports(t *testing.T) {
	var b strings.Builder
	good := report{suite: "a", client: "c 1", outcomes: []outcome{{passed, "x", ""}, {skipped, "y", "z"}}, took: time.Second}
	if !printReports(&b, []report{good}) {
		t.Error("a good report failed")
	}
	if !strings.HasSuffix(b.String(), "\n1 passed, 0 failed, 1 skipped\n") {
		t.Errorf("printed:\n%s", b.String())
	}
	if printReports(&b, []report{good, {suite: "b", outcomes: []outcome{{failed, "x", ""}}}}) {
		t.Error("a failure passed")
	}
	if printReports(&b, nil) {
		t.Error("nothing passed")
	}
}

func TestChoose(t *testing.T) {
	if got, err := choose("amqplib,pika"); err != nil || len(got) != 2 || got[0].name != "amqplib" {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := choose("nothing"); err == nil {
		t.Error("an unknown suite was accepted")
	}
}
