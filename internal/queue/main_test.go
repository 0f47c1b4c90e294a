package queue

import (
	"flag"
	"os"
	"testing"
)

// The model tests need longer runs than rapid's default of about 30 steps to get into
// the states that matter. A flag given by hand wins.
func TestMain(m *testing.M) {
	if err := flag.Set("rapid.steps", "120"); err != nil {
		panic(err)
	}
	flag.Parse()
	os.Exit(m.Run())
}
