#!/usr/bin/env bash
# Compares sluice with RabbitMQ under the same load, one after the other on this
# machine: "make compare-amqp". RabbitMQ comes from Debian and is installed when
# it is missing. Each round starts both brokers in turn on fresh directories and
# runs three loads, all with 1 KiB persistent messages, publisher confirms with a
# window of 500, and one durable queue:
#
#   publish   publish as fast as confirms allow, no consumer
#   both      publish and consume, as fast as it goes
#   paced     publish 5,000/s on a fixed schedule and consume
#
# The table shows medians over the rounds. Everything stays on loopback, every
# step is bounded in time, and only what was started here is stopped.
#
#   compare-amqp.sh [-r ROUNDS] [-d DURATION] [-w WARMUP] [-b BINARY] [-q TYPE] [-o DIR]
#
#   -r  rounds (3)              -b  sluice binary (default: built from ./cmd/sluice)
#   -d  measured time (8s)      -q  queue type to ask RabbitMQ for (default: its own)
#   -w  warm-up (2s)            -o  write a file of raw results there, as bench/results
set -euo pipefail

cd "$(dirname "$0")/../.."
here=test/compare
rounds=3 duration=8s warmup=2s binary='' queue_type='' out=''
while getopts r:d:w:b:q:o:h opt; do
	case $opt in
	r) rounds=$OPTARG ;;
	d) duration=$OPTARG ;;
	w) warmup=$OPTARG ;;
	b) binary=$OPTARG ;;
	q) queue_type=$OPTARG ;;
	o) out=$OPTARG ;;
	h) sed -n '2,21p' "$0" | sed 's/^# \{0,1\}//' && exit 0 ;;
	*) exit 2 ;;
	esac
done
rabbitmq_port=${RABBITMQ_PORT:-5782} sluice_port=${SLUICE_PORT:-5792}

work=$(mktemp -d "${TMPDIR:-/tmp}/sluice-compare.XXXXXX")
results=$work/results
mkdir "$results"
sluice_pid=''
violations=0

cleanup() {
	stop_sluice || true
	$here/rabbitmq.sh stop "$work/rabbitmq" || true
	rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# answers PORT: true when a broker there knows that it has no such queue, so that
# it serves clients and not only connections.
answers() {
	local said
	said=$("$binary" consume --url "amqp://guest:guest@127.0.0.1:$1/" --count 1 compare-no-such-queue 2>&1) || true
	[[ $said == *NOT_FOUND* ]]
}

start_sluice() {
	rm -rf "$work/sluice"
	"$binary" serve --data "$work/sluice" --amqp-listen "127.0.0.1:$sluice_port" --log-level warn >"$work/sluice.log" 2>&1 </dev/null &
	sluice_pid=$!
	local i
	for ((i = 0; i < 300; i++)); do
		if answers "$sluice_port"; then return 0; fi
		kill -0 "$sluice_pid" 2>/dev/null || break
		sleep 0.1
	done
	echo "sluice did not come up:" >&2
	tail -n 20 "$work/sluice.log" >&2
	return 1
}

stop_sluice() {
	[ -n "$sluice_pid" ] || return 0
	kill -TERM "$sluice_pid" 2>/dev/null || true
	local i
	for ((i = 0; i < 200; i++)); do
		kill -0 "$sluice_pid" 2>/dev/null || break
		sleep 0.1
	done
	kill -KILL "$sluice_pid" 2>/dev/null || true
	wait "$sluice_pid" 2>/dev/null || true
	sluice_pid=''
}

start_rabbitmq() {
	rm -rf "$work/rabbitmq"
	$here/rabbitmq.sh start "$work/rabbitmq" "$rabbitmq_port"
}

# cpu_ms PID: CPU time of a process so far, in milliseconds.
cpu_ms() {
	local hz
	hz=$(getconf CLK_TCK)
	sed 's/.*) //' "/proc/$1/stat" | awk -v hz="$hz" '{print int(($12 + $13) * 1000 / hz)}'
}

# load BROKER PORT PID ROUND NAME FLAGS...: run one load; its result and the
# broker's memory and CPU time go to $results.
load() {
	local broker=$1 port=$2 pid=$3 round=$4 name=$5
	shift 5
	local base=$results/$broker.$name.$round cpu rc=0
	[ "$broker" != rabbitmq ] || [ -z "$queue_type" ] || set -- "$@" --queue-type "$queue_type"
	cpu=$(cpu_ms "$pid")
	timeout 300 "$binary" bench amqp --url "amqp://guest:guest@127.0.0.1:$port/" --json --quiet \
		--size 1024 --confirm-window 500 --warmup "$warmup" --duration "$duration" "$@" >"$base.json" || rc=$?
	# 1 with a result: the broker broke a promise, and the message said which.
	if [ "$rc" -ne 0 ]; then
		[ "$rc" -eq 1 ] && [ -s "$base.json" ] || return "$rc"
		violations=$((violations + 1))
	fi
	echo "$(($(cpu_ms "$pid") - cpu)) $(awk '/^VmHWM/ {print $2}' "/proc/$pid/status")" >"$base.process"
	echo "  round $round  $broker  $name" >&2
}

loads() {
	load "$1" "$2" "$3" "$4" publish --publish-only
	load "$1" "$2" "$3" "$4" both
	load "$1" "$2" "$3" "$4" paced --rate 5000
}

if [ -z "$binary" ]; then
	binary=$work/sluice-binary
	go build -o "$binary" ./cmd/sluice
fi
go build -o "$work/report" ./$here/report
$here/rabbitmq.sh install

for ((round = 1; round <= rounds; round++)); do
	start_rabbitmq
	loads rabbitmq "$rabbitmq_port" "$($here/rabbitmq.sh pid "$work/rabbitmq")" "$round"
	$here/rabbitmq.sh stop "$work/rabbitmq"
	start_sluice
	loads sluice "$sluice_port" "$sluice_pid" "$round"
	stop_sluice
done

commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
if [ -n "$out" ]; then
	mkdir -p "$out"
	out=$out/compare-amqp-$(date -u +%Y%m%d-%H%M%S).json
fi
"$work/report" -commit "$commit" -out "$out" "$results"
if [ "$violations" -gt 0 ]; then
	echo "$violations run(s) with violations, see above" >&2
	exit 1
fi
