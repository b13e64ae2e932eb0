#!/bin/sh
# Starts nats-server with this project's nats.conf and with passwords of any form, numbers too:
# nats-server takes environment variables for configuration, so each is quoted here. Arguments go to nats-server.
set -eu
config="$(dirname "$0")/../nats.conf"
for name in $(sed 's/#.*//' "$config" | grep -o '[$]JIDO_[A-Z_]*' | tr -d '$' | sort -u); do
    eval "value=\${$name:-}"
    if [ -z "$value" ]; then
        echo "$name is unset or empty: every user of nats.conf needs a password" >&2
        exit 1
    fi
    export "$name=\"$(printf %s "$value" | sed 's/[\\"]/\\&/g')\""
done
exec nats-server -c "$config" "$@"
