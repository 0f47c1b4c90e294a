// Command sim runs many seeds of the simulation, or one again with its history.
package main

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/sluicemq/sluice/internal/sim"
)

func main() {
	seed := flag.Uint64("seed", 0, "the run of this seed alone")
	first := flag.Uint64("first", 1, "first seed")
	seeds := flag.Uint64("seeds", 200, "how many seeds")
	kind := flag.String("kind", "", "kind of runs, of "+fmt.Sprint(sim.Kinds())+"; default: all in turns")
	most := flag.Duration("max", 0, "begin no run after so long")
	verbose := flag.Bool("v", false, "say what happens in the run")
	flag.Parse()
	if *kind != "" && !slices.Contains(sim.Kinds(), *kind) {
		fmt.Fprintln(os.Stderr, "no such kind of runs:", *kind)
		os.Exit(2)
	}
	if *seed != 0 {
		*first, *seeds = *seed, 1
	}
	if !run(*first, *seeds, *kind, *most, *verbose) {
		os.Exit(1)
	}
}

// run does the seeds, and those that fail again with their history.
func run(first, seeds uint64, kind string, most time.Duration, verbose bool) bool {
	began := time.Now()
	var sum sim.Stats
	done, failed := 0, 0
	for seed := first; seed < first+seeds; seed++ {
		if most > 0 && time.Since(began) > most {
			break
		}
		k := kind
		if k == "" {
			k = sim.Kinds()[seed%uint64(len(sim.Kinds()))]
		}
		w := sim.New(seed, k)
		if verbose {
			w.Say = say
		}
		r := w.Run()
		done++
		sum.Add(r.Stats)
		if r.Found == nil {
			continue
		}
		failed++
		fmt.Fprintf(os.Stdout, "seed %d (%s): %v\n  again: %s\n", r.Seed, r.Kind, r.Found, r.Replay())
		if r.Found.About != (sim.About{}) {
			w := sim.New(seed, k)
			w.Say, w.Watch = say, r.Found.About
			w.Run()
		}
	}
	fmt.Fprintf(os.Stdout, "%d runs, %d failed, %.1f s\n%+v\n", done, failed, time.Since(began).Seconds(), sum)
	return failed == 0
}

func say(line string) { fmt.Fprintln(os.Stdout, line) }
