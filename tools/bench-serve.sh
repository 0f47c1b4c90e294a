#!/usr/bin/env bash
# Starts a broker on a free port with an empty data directory, puts load on it
# with the same binary, and stops it.
#
#   bench-serve.sh BINARY [ARGUMENTS of sluice bench amqp]
set -euo pipefail
binary=$(readlink -f "$1")
shift
dir=$(mktemp -d)
pid=
cleanup() {
	if [ -n "$pid" ]; then
		kill "$pid" 2>/dev/null || true
		wait "$pid" || true
	fi
	rm -rf "$dir"
}
trap cleanup EXIT

# Port 0 lets the system choose; the broker prints what it got.
"$binary" serve --data "$dir/data" --amqp-listen 127.0.0.1:0 --log-level warn >"$dir/stdout" &
pid=$!
for ((i = 0; i < 200; i++)); do
	addr=$(sed -n 's/^listening for AMQP 0-9-1 on //p' "$dir/stdout")
	[ -z "$addr" ] || break
	kill -0 "$pid" || { echo "bench-serve: the broker ended" >&2; exit 1; }
	sleep 0.1
done
[ -n "$addr" ] || { echo "bench-serve: the broker doesn't say where it listens" >&2; exit 1; }
"$binary" bench amqp --url "amqp://guest:guest@$addr/" "$@"
