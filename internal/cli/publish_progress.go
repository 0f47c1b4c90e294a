package cli

import (
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// progress is a bar on a terminal. Its zero value shows nothing.
type progress struct {
	bar *progressbar.ProgressBar
}

// newProgress returns a bar for size bytes, or a spinner when size is -1. Where
// w is no terminal, or standard input is one (lines are typed by hand), nothing
// is shown.
func newProgress(w io.Writer, size int64, what string) progress {
	if !isTerminal(w) || size < 0 && isTerminal(os.Stdin) {
		return progress{}
	}
	return progress{progressbar.NewOptions64(size,
		progressbar.OptionSetWriter(w),
		progressbar.OptionSetDescription(what),
		progressbar.OptionShowBytes(true),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish(),
		progressbar.OptionFullWidth(),
	)}
}

// add moves the bar by n bytes.
func (p progress) add(n int64) {
	if p.bar != nil {
		_ = p.bar.Add64(n) // only fails past the end: the file grew meanwhile
	}
}

// clear makes room for a line of text.
func (p progress) clear() {
	if p.bar != nil {
		_ = p.bar.Clear()
	}
}

// finish takes the bar away.
func (p progress) finish() {
	if p.bar != nil {
		_ = p.bar.Exit()
		_ = p.bar.Clear()
	}
}

func isTerminal(f any) bool {
	file, ok := f.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}
