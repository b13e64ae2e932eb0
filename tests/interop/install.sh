#!/bin/sh
# Installs what the programs in this folder, tests/deploy, tests/dashboard and tests/system need beside Go, Node, Rust, a JDK with Maven: Debian's packages, as root.
# Quick where all is there already.
set -eu

packages="gcc make pkg-config libc6-dev libnats-dev libjansson-dev chromium systemd openssl libfaketime caddy nginx-light jq"

missing=""
for package in $packages; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086  # a list of words
apt-get install -qq -y --no-install-recommends $missing
