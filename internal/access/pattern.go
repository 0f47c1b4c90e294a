package access

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/dlclark/regexp2"
)

// errForeign is for rows of another user or virtual host.
var errForeign = errors.New("access: row of another user or virtual host")

// matchTimeout bounds an expression that backtracks: after it a name doesn't match.
const matchTimeout = 50 * time.Millisecond

// patternMax is the longest pattern that is taken, in bytes.
const patternMax = 4096

type matcher func(name string) bool

// Match reports whether a pattern compiles and matches a name.
func (p Pattern) Match(name string) bool {
	m, err := compile(p)
	return err == nil && m(name)
}

// Check says what is wrong with a pattern.
func (p Pattern) Check() error {
	_, err := compile(p)
	return err
}

// compile prepares a pattern. Regular expressions are those of PCRE as far as they are
// in use: what Go's own can't express (looking ahead or behind, back references) is left
// to an engine that backtracks, with a limit of time.
func compile(p Pattern) (matcher, error) {
	if len(p.Text) > patternMax {
		return nil, fmt.Errorf("pattern of %d bytes is longer than %d", len(p.Text), patternMax)
	}
	switch p.Matching {
	case Literal:
		return func(name string) bool { return name == p.Text }, nil
	case Prefix:
		return func(name string) bool { return strings.HasPrefix(name, p.Text) }, nil
	case Regexp:
		return compileRegexp(p.Text)
	}
	return nil, fmt.Errorf("unknown kind %d of a pattern", p.Matching)
}

func compileRegexp(text string) (matcher, error) {
	switch text {
	case "":
		return func(name string) bool { return name == "" }, nil
	case ".*":
		return func(string) bool { return true }, nil
	}
	if re, err := regexp.Compile(text); err == nil {
		return re.MatchString, nil
	}
	re, err := regexp2.Compile(text, regexp2.None)
	if err != nil {
		return nil, fmt.Errorf("invalid regular expression %q: %w", text, err)
	}
	re.MatchTimeout = matchTimeout
	return func(name string) bool {
		ok, err := re.MatchString(name)
		return err == nil && ok
	}, nil
}

func quoteMeta(s string) string { return regexp.QuoteMeta(s) }
