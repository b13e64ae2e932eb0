#!/usr/bin/env bash
# A cluster to try out on one machine, on loopback: three nats-servers with the roles and the TLS of server.conf, and
# two managers.
#
#   deploy/cluster/local.sh [--port PORT] [--dir DIR] [arguments of `jido-nats serve`, such as --worker module:callable]
#
# Takes the nine ports from PORT (4222) on: clients, routes, monitoring, three each. DIR keeps what is stored; without
# it everything goes when it ends. What dies is started again after some seconds, as systemd or Kubernetes do.
# Ctrl-C ends all of it, within half a minute.
set -euo pipefail
umask 077 # passwords, keys, what is stored and logged

here=$(cd "$(dirname "$0")" && pwd)
port=4222 dir="" keep=""
while [ $# -gt 0 ]; do
    case $1 in
    --port) port=$2 && shift 2 ;;
    --dir) dir=$2 keep=yes && shift 2 ;;
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit 0 ;;
    *) break ;;
    esac
done

RESTART_AFTER_S=5
START_TIMEOUT_S=60
MANAGER_STOP_TIMEOUT_S=15
SERVER_STOP_TIMEOUT_S=10

fail() {
    echo "local.sh: $*" >&2
    exit 1
}

[ -x "$here/../../.venv/bin/jido-nats" ] && PATH="$PATH:$(cd "$here/../../.venv/bin" && pwd)"
command -v jido-nats >/dev/null || fail "jido-nats is not on PATH; activate its virtual environment"
command -v nats-server >/dev/null || PATH="$PATH:$(dirname "$(command -v jido-nats)")"
command -v nats-server >/dev/null || fail "nats-server is not on PATH: pip install 'jido_nats[server]'"

if [ -n "$keep" ]; then mkdir -p "$dir"; else dir=$(mktemp -d "${TMPDIR:-/tmp}/jido-cluster.XXXXXX"); fi
dir=$(cd "$dir" && pwd)

names=(n1 n2 n3 manager-1 manager-2)
pids=("" "" "" "" "")
ended_at=(0 0 0 0 0)

# Starts one of `names`. Job control gives it a process group of its own: Ctrl-C is for this script, which ends the
# managers first.
start() {
    local index=$1 name=${names[$1]}
    set -m
    case $name in
    n*) server "$index" >>"$dir/$name.log" 2>&1 </dev/null & ;;
    *) manager "${@:2}" >>"$dir/$name.log" 2>&1 </dev/null & ;;
    esac
    pids[index]=$!
    set +m
    disown # it is no job of this shell, which would tell of its end in the shell's own words
    echo $! >"$dir/$name.pid"
}

server() {
    cd "$dir/n$(($1 + 1))"
    export JIDO_SERVER_NAME="n$(($1 + 1))" \
        JIDO_LISTEN="\"127.0.0.1:$((port + $1))\"" \
        JIDO_CLUSTER_LISTEN="\"127.0.0.1:$((port + 3 + $1))\"" \
        JIDO_MONITOR="\"127.0.0.1:$((port + 6 + $1))\"" \
        JIDO_ROUTES="[\"tls://127.0.0.1:$((port + 3))\", \"tls://127.0.0.1:$((port + 4))\", \"tls://127.0.0.1:$((port + 5))\"]"
    exec "$here/../nats-server.sh" -c "$here/server.conf"
}

manager() {
    export NATS_USER=manager NATS_PASSWORD="$JIDO_MANAGER_PASSWORD" \
        NATS_API_USER=manager-api NATS_API_PASSWORD="$JIDO_MANAGER_API_PASSWORD"
    exec jido-nats serve --replicas 3 --lease-s 15 "$@"
}

runs() { [ -n "$1" ] && kill -0 "$1" 2>/dev/null; }

# Whether a server has found the others and a leader for JetStream, as its monitoring port says.
healthy() {
    local answer=""
    { exec 3<>"/dev/tcp/127.0.0.1/$((port + 6 + $1))"; } 2>/dev/null || return 1
    printf 'GET /healthz HTTP/1.0\r\n\r\n' >&3
    answer=$(timeout 5 cat <&3) || true
    exec 3>&-
    [[ $answer == *'"ok"'* ]]
}

serves() { grep -q ' serves on ' "$dir/$1.log" 2>/dev/null; }

# Waits until a condition holds for one of `names`, or says what it last wrote.
await() {
    local index=$1 deadline=$((SECONDS + START_TIMEOUT_S))
    until "${@:2}"; do
        if ! runs "${pids[index]}" || [ "$SECONDS" -ge "$deadline" ]; then
            fail "${names[index]} did not start: $(tail -n 3 "$dir/${names[index]}.log")"
        fi
        sleep 0.1
    done
}

# Ends processes: SIGTERM, and SIGKILL for what is still there after so many seconds.
end() {
    local deadline=$((SECONDS + $1)) pid left=yes
    for pid in "${@:2}"; do kill -TERM "$pid" 2>/dev/null || true; done
    while [ -n "$left" ] && [ "$SECONDS" -lt "$deadline" ]; do
        left=""
        for pid in "${@:2}"; do if runs "$pid"; then left=yes; fi; done
        [ -z "$left" ] || sleep 0.1
    done
    for pid in "${@:2}"; do kill -KILL "$pid" 2>/dev/null || true; done
}

stop() {
    trap '' INT TERM HUP
    # shellcheck disable=SC2086  # what was not started is no word
    end "$MANAGER_STOP_TIMEOUT_S" ${pids[3]} ${pids[4]}
    # shellcheck disable=SC2086
    end "$SERVER_STOP_TIMEOUT_S" ${pids[0]} ${pids[1]} ${pids[2]}
    [ -n "$keep" ] || rm -rf "$dir"
}

trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

[ -f "$dir/passwords" ] || "$here/../passwords.sh" "$dir/passwords"
set -a
# shellcheck disable=SC1091
. "$dir/passwords"
unset NATS_USER NATS_PASSWORD NATS_TOKEN NATS_NKEY NATS_CREDS NATS_CERT NATS_KEY
NATS_URL="tls://127.0.0.1:$port,tls://127.0.0.1:$((port + 1)),tls://127.0.0.1:$((port + 2))"
NATS_CA="$dir/certificates/ca.pem"
set +a
# A DIR of version 0.1.0 has no certificates for routes yet.
[ -f "$dir/certificates/n3/route.pem" ] || "$here/certificates.sh" "$dir/certificates" n1 n2 n3
cat >"$dir/env" <<EOF
export NATS_URL="$NATS_URL" NATS_CA="$NATS_CA" NATS_USER=client NATS_PASSWORD="$JIDO_CLIENT_PASSWORD"
EOF

rm -f "$dir"/*.log
for index in 0 1 2; do
    mkdir -p "$dir/n$((index + 1))"
    ln -sfn "$dir/certificates/n$((index + 1))" "$dir/n$((index + 1))/tls"
    start "$index"
done
for index in 0 1 2; do await "$index" healthy "$index"; done
for index in 3 4; do # one after the other: the first makes the streams
    start "$index" "$@"
    await "$index" serves "${names[index]}"
done

cat <<EOF
Three servers and two managers run; their logs, process ids and keys are in $dir
Try, in another terminal:
  . $dir/env
  jido-nats create --metadata project=demo
  jido-nats events --since all
  kill -9 \$(cat $dir/n1.pid)          # nothing is lost; it is started again after $RESTART_AFTER_S s
  kill -9 \$(cat $dir/manager-1.pid)   # the other manager ends its sessions with owner_lost
Ctrl-C ends everything.
EOF

while :; do
    sleep 1
    for index in "${!names[@]}"; do
        if runs "${pids[index]}"; then
            ended_at[index]=0
        elif [ "${ended_at[index]}" = 0 ]; then
            ended_at[index]=$SECONDS
            echo "${names[index]} has ended"
        elif [ $((SECONDS - ended_at[index])) -ge "$RESTART_AFTER_S" ]; then
            start "$index" "$@"
            ended_at[index]=0
            echo "${names[index]} is started again"
        fi
    done
done
