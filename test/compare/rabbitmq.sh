#!/usr/bin/env bash
# Starts and stops a private RabbitMQ on loopback, with everything it writes
# under one directory. It shares nothing with a RabbitMQ that the machine may
# already run: own ports, own epmd, own cookie, own data.
#
#   rabbitmq.sh install            install RabbitMQ from Debian when missing
#   rabbitmq.sh start DIR [PORT]   start it (default port 5682), wait until it serves
#   rabbitmq.sh stop DIR           stop the one that was started in DIR
#   rabbitmq.sh pid DIR            print the process id of the Erlang VM
set -euo pipefail

usage() {
	sed -n '2,10p' "$0" | sed 's/^# \{0,1\}//'
	exit 2
}

# find_server prints the path of RabbitMQ's own start script. Debian's wrapper
# in /usr/sbin changes the user and the directories, which we don't want.
find_server() {
	local s
	for s in /usr/lib/rabbitmq/bin/rabbitmq-server /usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server; do
		if [ -x "$s" ]; then
			readlink -f "$s"
			return 0
		fi
	done
	return 1
}

install_rabbitmq() {
	if find_server >/dev/null; then
		return 0
	fi
	command -v apt-get >/dev/null || {
		echo "rabbitmq.sh: RabbitMQ is missing and there is no apt-get to install it" >&2
		return 1
	}
	# The package starts its service at installation; a policy file that says
	# no keeps it from that, and is removed again unless it was there before.
	local policy=/usr/sbin/policy-rc.d ours=
	if [ ! -e "$policy" ]; then
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod +x "$policy"
		ours=1
	fi
	local rc=0
	{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq rabbitmq-server; } >&2 || rc=$?
	[ -z "$ours" ] || rm -f "$policy"
	return "$rc"
}

# alive PID: true while the process exists and isn't a zombie.
alive() {
	[ -n "$1" ] && [ -r "/proc/$1/stat" ] && [ "$(sed 's/.*) //; s/ .*//' "/proc/$1/stat")" != Z ]
}

# Waits up to $2 seconds for the process $1 to end.
wait_gone() {
	local i
	for ((i = 0; i < $2 * 10; i++)); do
		alive "$1" || return 0
		sleep 0.1
	done
	return 1
}

start_rabbitmq() {
	local dir=$1 port=$2 server sbin
	server=$(find_server) || {
		echo "rabbitmq.sh: RabbitMQ isn't installed; run: $0 install" >&2
		return 1
	}
	sbin=$(dirname "$server")
	mkdir -p "$dir/mnesia" "$dir/log"
	dir=$(cd "$dir" && pwd)
	if [ -s "$dir/pid" ] && alive "$(cat "$dir/pid")"; then
		echo "rabbitmq.sh: already running in $dir" >&2
		return 1
	fi
	printf 'listeners.tcp.1 = 127.0.0.1:%d\nlog.console = false\nlog.file.level = warning\n' "$port" >"$dir/rabbitmq.conf"
	printf '[].\n' >"$dir/enabled_plugins"
	: >"$dir/rabbitmq-env.conf"

	# Distribution ports next to the AMQP port, so that two can run at a time.
	local epmd_port=$((port + 10000)) dist_port=$((port + 20000))
	env HOME="$dir" ERL_EPMD_ADDRESS=127.0.0.1 ERL_EPMD_PORT=$epmd_port \
		epmd >"$dir/epmd.log" 2>&1 </dev/null &
	echo $! >"$dir/epmd.pid"

	env HOME="$dir" \
		ERL_EPMD_ADDRESS=127.0.0.1 ERL_EPMD_PORT=$epmd_port \
		RABBITMQ_NODENAME=rabbit@localhost RABBITMQ_DIST_PORT=$dist_port \
		RABBITMQ_CONF_ENV_FILE="$dir/rabbitmq-env.conf" \
		RABBITMQ_CONFIG_FILE="$dir/rabbitmq.conf" \
		RABBITMQ_ENABLED_PLUGINS_FILE="$dir/enabled_plugins" \
		RABBITMQ_MNESIA_BASE="$dir/mnesia" RABBITMQ_LOG_BASE="$dir/log" \
		RABBITMQ_PID_FILE="$dir/pid" \
		RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1}" \
		"$sbin/rabbitmq-server" >"$dir/stdout" 2>"$dir/stderr" </dev/null &
	local shell_pid=$!
	echo "$shell_pid" >"$dir/shell.pid"

	local i
	for ((i = 0; i < 600; i++)); do
		if amqp_answers "$port"; then
			return 0
		fi
		alive "$shell_pid" || break
		sleep 0.1
	done
	echo "rabbitmq.sh: RabbitMQ did not come up on port $port; see $dir/log and $dir/stderr" >&2
	tail -n 5 "$dir/stdout" "$dir/stderr" >&2 || true
	stop_rabbitmq "$dir"
	return 1
}

# amqp_answers PORT: true when a server there answers the protocol header with
# a method frame (connection.start).
amqp_answers() {
	local first
	first=$(
		exec 2>/dev/null 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
		printf 'AMQP\0\0\11\1' >&3
		timeout 5 head -c 1 <&3 | od -An -tu1 | tr -d ' '
	) || return 1
	[ "$first" = 1 ]
}

# The VM's id: the pid file when RabbitMQ got as far as writing it, else the
# start script's, which waits for the VM and passes SIGTERM on.
vm_pid() {
	if [ -s "$1/pid" ]; then cat "$1/pid"; elif [ -s "$1/shell.pid" ]; then cat "$1/shell.pid"; fi
}

stop_rabbitmq() {
	local dir=$1 pid f
	pid=$(vm_pid "$dir")
	if alive "$pid"; then
		kill -TERM "$pid" 2>/dev/null || true
		wait_gone "$pid" 30 || kill -KILL "$pid" 2>/dev/null || true
	fi
	for f in shell.pid epmd.pid; do
		[ -s "$dir/$f" ] || continue
		pid=$(cat "$dir/$f")
		if alive "$pid"; then
			kill -TERM "$pid" 2>/dev/null || true
			wait_gone "$pid" 5 || kill -KILL "$pid" 2>/dev/null || true
		fi
		rm -f "$dir/$f"
	done
	rm -f "$dir/pid"
}

case ${1:-} in
install) install_rabbitmq ;;
start) [ $# -ge 2 ] || usage; start_rabbitmq "$2" "${3:-5682}" ;;
stop) [ $# -ge 2 ] || usage; stop_rabbitmq "$2" ;;
pid) [ $# -ge 2 ] || usage; vm_pid "$2" ;;
*) usage ;;
esac
