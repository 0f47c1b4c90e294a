#!/usr/bin/env bash
# Runs every fuzz target of the module for a while each, one after another.
#
#   fuzz-smoke.sh [TIME]    TIME as go test -fuzztime takes it, default 10s
#
# A crash is written to the package's testdata/fuzz and is an ordinary test case
# from then on. Goes on after a failure; ends non-zero if there was one.
#
# Two habits of Go's fuzzer are taken into account. It shrinks each interesting
# input for up to a minute, which is all of a short run: limited to a few tries.
# And before Go 1.27 it may report the end of its own time as a failure named
# "context deadline exceeded" (go.dev/issue/75804): that alone, with no failing
# input, is the end of the run and is said so.
set -euo pipefail
cd "$(dirname "$0")/.."
fuzztime=${1:-10s}

log=$(mktemp)
trap 'rm -f "$log"' EXIT

# fuzz runs one target; succeeds if it found nothing.
fuzz() {
	go test -run '^$' -fuzz "^$2\$" -fuzztime "$fuzztime" -fuzzminimizetime 100x "$1" 2>&1 | tee "$log" && return
	# All but progress and the frame of a failure: what it failed of.
	local why
	why=$(grep -Ev '^(fuzz: elapsed|warning: |--- FAIL|FAIL|exit status)' "$log" || true)
	[ "$(echo $why)" = "context deadline exceeded" ] || return 1
	echo "    (that was the end of the fuzzer's time, go.dev/issue/75804; no failing input)"
}

ran=0 failed=()
for dir in $(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -r -n 1 dirname | sort -u); do
	for target in $(go test -list '^Fuzz' "$dir" | grep '^Fuzz' || true); do
		echo "--- $dir $target"
		ran=$((ran + 1))
		fuzz "$dir" "$target" || failed+=("$dir $target")
	done
done

[ "$ran" -gt 0 ] || { echo "fuzz-smoke: no fuzz target found" >&2; exit 1; }
printf 'fuzz-smoke: failed: %s\n' "${failed[@]}" | sed '/: $/d'
echo "fuzz: $((ran - ${#failed[@]})) passed, ${#failed[@]} failed"
[ "${#failed[@]}" -eq 0 ]
