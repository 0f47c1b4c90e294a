#!/usr/bin/env bash
# Runs every fuzz target of the module for a while each, one after another.
#
#   fuzz-smoke.sh [TIME]    TIME as go test -fuzztime takes it, default 10s
#
# A crash is written to the package's testdata/fuzz and is an ordinary test case
# from then on. Goes on after a failure; ends non-zero if there was one.
set -euo pipefail
cd "$(dirname "$0")/.."
fuzztime=${1:-10s}

ran=0 failed=()
for dir in $(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -r -n 1 dirname | sort -u); do
	for target in $(go test -list '^Fuzz' "$dir" | grep '^Fuzz' || true); do
		echo "--- $dir $target"
		ran=$((ran + 1))
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$fuzztime" "$dir" || failed+=("$dir $target")
	done
done

[ "$ran" -gt 0 ] || { echo "fuzz-smoke: no fuzz target found" >&2; exit 1; }
printf 'fuzz-smoke: failed: %s\n' "${failed[@]}" | sed '/: $/d'
echo "fuzz: $((ran - ${#failed[@]})) passed, ${#failed[@]} failed"
[ "${#failed[@]}" -eq 0 ]
