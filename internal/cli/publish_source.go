package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
)

// source is what "sluice publish" publishes.
type source interface {
	// messages returns one message after the other until the source or ctx ends.
	// An error comes as the last one. It is called once.
	messages(ctx context.Context) iter.Seq[sourced]
	// size returns the bytes that will be read, -1 when that is unknown.
	size() int64
	close()
}

// sourced is a message to be published, or why there are no more.
type sourced struct {
	data []byte
	read int64 // bytes of the source that it took
	err  error
}

// lineSource makes a message of every line of some readers.
type lineSource struct {
	readers []io.Reader
	closers []io.Closer
	bytes   int64
}

// newLineSource reads lines from one reader of unknown length.
func newLineSource(r io.Reader) *lineSource {
	return &lineSource{readers: []io.Reader{r}, bytes: -1}
}

// openLineFiles reads lines from files, one after the other.
func openLineFiles(names []string) (*lineSource, error) {
	s := &lineSource{}
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			s.close()
			return nil, err
		}
		s.readers = append(s.readers, f)
		s.closers = append(s.closers, f)
		info, err := f.Stat()
		switch {
		case err == nil && info.IsDir():
			s.close()
			return nil, fmt.Errorf("%s is a directory", name)
		case err != nil || !info.Mode().IsRegular():
			s.bytes = -1
		case s.bytes >= 0:
			s.bytes += info.Size()
		}
	}
	return s, nil
}

func (s *lineSource) size() int64 { return s.bytes }

func (s *lineSource) close() {
	for _, c := range s.closers {
		_ = c.Close() // read only
	}
}

// messages reads in a goroutine: a read of a terminal or pipe can't be
// interrupted, but waiting for it can. After an interruption that goroutine
// stays in its last read until the process ends.
func (s *lineSource) messages(ctx context.Context) iter.Seq[sourced] {
	return func(yield func(sourced) bool) {
		lines, done := make(chan sourced, 64), make(chan struct{})
		defer close(done)
		go func() {
			defer close(lines)
			for _, r := range s.readers {
				if !sendLines(r, lines, done) {
					return
				}
			}
		}()
		for {
			select {
			case <-ctx.Done():
				return
			case m, ok := <-lines:
				if !ok || !yield(m) {
					return
				}
			}
		}
	}
}

// sendLines sends every line of r without its newline; what follows the last
// newline counts as a line unless it is empty. It reports false when that has to
// be all.
func sendLines(r io.Reader, lines chan<- sourced, done <-chan struct{}) bool {
	send := func(m sourced) bool {
		select {
		case lines <- m:
			return true
		case <-done:
			return false
		}
	}
	br := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := br.ReadBytes('\n')
		n := int64(len(line))
		if err == nil {
			line = line[:len(line)-1]
		}
		if (err == nil || n > 0 && errors.Is(err, io.EOF)) && !send(sourced{data: line, read: n}) {
			return false
		}
		switch {
		case errors.Is(err, io.EOF):
			return true
		case err != nil:
			send(sourced{err: err})
			return false
		}
	}
}

// wholeSource makes a message of every text and of every file, repeat times.
type wholeSource struct {
	bodies, files []string
	repeat        int
}

func (s *wholeSource) close() {}

func (s *wholeSource) size() (n int64) {
	for _, b := range s.bodies {
		n += int64(len(b))
	}
	for _, name := range s.files {
		info, err := os.Stat(name)
		if err != nil || !info.Mode().IsRegular() {
			return -1
		}
		n += info.Size()
	}
	return n * int64(s.repeat)
}

func (s *wholeSource) messages(ctx context.Context) iter.Seq[sourced] {
	return func(yield func(sourced) bool) {
		for range s.repeat {
			for _, b := range s.bodies {
				if ctx.Err() != nil || !yield(sourced{data: []byte(b), read: int64(len(b))}) {
					return
				}
			}
			for _, name := range s.files {
				data, err := os.ReadFile(name)
				if ctx.Err() != nil || !yield(sourced{data: data, read: int64(len(data)), err: err}) {
					return
				}
			}
		}
	}
}
