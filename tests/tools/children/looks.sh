# What a program can reach of its manager, its parent, and of a session named "neighbour": one output, a list of words.
# $1: a file with its credentials, $2: the port of its metrics, $3: a secret in its environment.
read -r session
can() {
  word=$1
  shift
  if "$@" >/dev/null 2>&1; then found="$found,\"$word\""; fi
}
can environment cat "/proc/$PPID/environ"
can memory sh -c "exec 3<'/proc/$PPID/mem'"
can maps cat "/proc/$PPID/maps"
can descriptors readlink "/proc/$PPID/fd/0"
can "command line" grep -qa serve "/proc/$PPID/cmdline"
can signal kill -0 "$PPID"
can limit prlimit --pid "$PPID"
can read cat "$1"
can change sh -c ": >>'$1'"
can connect bash -c "exec 3<>/dev/tcp/127.0.0.1/$2"
can "find a secret" grep -qsa "$3" /proc/[0-9]*/environ
can "see a neighbour" grep -qsa JIDO_SESSION_ID=neighbour /proc/[0-9]*/environ
can "gain privileges" grep -q "NoNewPrivs:.*0" /proc/self/status
can "keep privileges" grep -Eq "Cap(Prm|Eff|Amb):.*[1-9a-f]" /proc/self/status
printf '{"type":"output","name":"can","data":[%s]}\n' "${found#,}"
printf '{"type":"output","name":"ids","data":"%s %s"}\n' "$(id -u)" "$(id -G)"
echo '{"type":"ready"}'
read -r message
