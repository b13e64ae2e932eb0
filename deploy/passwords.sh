#!/bin/sh
# Prints a new password for every user of nats.conf, as lines `JIDO_…_PASSWORD=…`: for a shell (`set -a; . ./file`),
# a Compose or systemd environment file, or `kubectl create secret generic … --from-env-file`.
# Each begins with a letter, so nats-server, which reads its environment as configuration, takes it as it is.
set -eu
config="$(dirname "$0")/../nats.conf"
for name in $(sed 's/#.*//' "$config" | grep -o '\$JIDO_[A-Z_]*' | tr -d '$' | sort -u); do
    printf '%s=p%s\n' "$name" "$(od -An -N 24 -t x1 /dev/urandom | tr -d ' \n')"
done
