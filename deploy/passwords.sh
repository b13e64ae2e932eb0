#!/bin/sh
# Makes a new password for every user of nats.conf, as lines `JIDO_…_PASSWORD=…`: for a shell (`set -a; . ./file`),
# a Compose or systemd environment file, or `kubectl create secret generic … --from-env-file`.
#
#   passwords.sh [FILE]      # FILE, which only its owner can read and which must not exist; without one, prints them
#
# Choose a FILE outside of the project. Each password begins with a letter, so nats-server, which reads its environment
# as configuration, takes it as it is.
set -eu
config="$(dirname "$0")/../nats.conf"
if [ $# -gt 0 ]; then
    umask 077
    mkdir -p "$(dirname "$1")"
    set -C # servers may use what is there already
    exec >"$1"
fi
for name in $(sed 's/#.*//' "$config" | grep -o '[$]JIDO_[A-Z_]*' | tr -d '$' | sort -u); do
    printf '%s=p%s\n' "$name" "$(od -An -N 24 -t x1 /dev/urandom | tr -d ' \n')"
done
