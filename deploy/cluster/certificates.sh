#!/bin/sh
# Makes two CAs, one for clients and one for routes, and two certificates for each server:
#
#   certificates.sh DIR NAME[,NAME…] [NAME[,NAME…] …]
#
# Each server is called by its first name. DIR/NAME/ gets server.pem, server.key and ca.pem for the port of clients, and
# route.pem, route.key and routes-ca.pem for the port of the other servers. The further names are what others call it
# by too; an address is taken as one, and every certificate is good for loopback.
#
# Routes have a CA of their own because a route is trusted in every account (server.conf): sign certificates of clients
# with ca.key, with extendedKeyUsage=clientAuth only, and nothing but servers with routes-ca.key.
#
# CAs that are in DIR already are used again, so that a server can be added, or its certificates renewed; a DIR of
# version 0.1.0, which has no CA for routes, gets one. Choose a DIR outside of the project, and keep ca.key and
# routes-ca.key off the servers.
set -euf # without globs: a name may have a star
[ $# -ge 2 ] || { sed -n '2,4s/^# \{0,1\}//p' "$0" >&2; exit 2; }
umask 077
dir=$1
shift

# Runs openssl, which prints progress too, and shows what it printed if it fails.
run_openssl() {
    printed=$(openssl "$@" 2>&1) || {
        echo "$printed" >&2
        exit 1
    }
}

make_ca() { # FILE COMMON-NAME
    [ ! -f "$dir/$1.pem" ] || return 0
    run_openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj "/CN=$2" \
        -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign" \
        -keyout "$dir/$1.key" -out "$dir/$1.pem"
    chmod 644 "$dir/$1.pem"
}

make_certificate() { # CA FILE USES, for $first with $alternatives, in $target
    printf '%s\n' "subjectAltName=$alternatives" "basicConstraints=critical,CA:FALSE" \
        "keyUsage=critical,digitalSignature" "extendedKeyUsage=$3" >"$target/extensions"
    run_openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$first" \
        -keyout "$target/$2.key" -out "$target/request"
    run_openssl x509 -req -in "$target/request" -CA "$dir/$1.pem" -CAkey "$dir/$1.key" -CAcreateserial -days 825 \
        -extfile "$target/extensions" -out "$target/$2.pem"
    rm "$target/request" "$target/extensions"
    cp "$dir/$1.pem" "$target/$1.pem"
    chmod 644 "$target/$2.pem" "$target/$1.pem"
}

mkdir -p "$dir"
make_ca ca "jido NATS CA"
make_ca routes-ca "jido NATS routes CA"

for names in "$@"; do
    first=${names%%,*}
    target="$dir/$first"
    mkdir -p "$target"
    chmod 700 "$target"
    alternatives="DNS:localhost,IP:127.0.0.1"
    for name in $(echo "$names" | tr ',' ' '); do
        case $name in
        *:*) kind=IP ;; # of version 6
        *[!0-9.]*) kind=DNS ;;
        *) kind=IP ;;
        esac
        alternatives="$alternatives,$kind:$name"
    done
    make_certificate ca server serverAuth
    make_certificate routes-ca route serverAuth,clientAuth # servers are clients of each other
done
