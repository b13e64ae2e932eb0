#!/bin/sh
# Makes a CA and, signed by it, a certificate for each server, for its clients and for the other servers:
#
#   certificates.sh DIR NAME[,NAME…] [NAME[,NAME…] …]
#
# Each server is called by its first name: DIR/NAME/ gets server.pem, server.key and ca.pem. The further ones are what
# others call it by too; an address is taken as one, and every certificate is good for loopback.
# A CA that is in DIR already is used again, so that a server can be added, or its certificate made anew. Keep
# DIR/ca.key off the servers.
set -euf # without globs: a name may have a star
[ $# -ge 2 ] || { sed -n '2,4s/^# \{0,1\}//p' "$0" >&2; exit 2; }
umask 077
dir=$1
shift
mkdir -p "$dir"

if [ ! -f "$dir/ca.key" ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj "/CN=jido NATS CA" \
        -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign" \
        -keyout "$dir/ca.key" -out "$dir/ca.pem" 2>/dev/null
    chmod 644 "$dir/ca.pem"
fi

for names in "$@"; do
    first=${names%%,*}
    target="$dir/$first"
    mkdir -p "$target"
    alternatives="DNS:localhost,IP:127.0.0.1"
    for name in $(echo "$names" | tr ',' ' '); do
        case $name in
        *:*) kind=IP ;; # of version 6
        *[!0-9.]*) kind=DNS ;;
        *) kind=IP ;;
        esac
        alternatives="$alternatives,$kind:$name"
    done
    # Servers are clients of each other, so a certificate has both uses.
    printf '%s\n' "subjectAltName=$alternatives" "basicConstraints=critical,CA:FALSE" \
        "keyUsage=critical,digitalSignature" "extendedKeyUsage=serverAuth,clientAuth" >"$target/extensions"
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$first" \
        -keyout "$target/server.key" -out "$target/request" 2>/dev/null
    openssl x509 -req -in "$target/request" -CA "$dir/ca.pem" -CAkey "$dir/ca.key" -CAcreateserial -days 825 \
        -extfile "$target/extensions" -out "$target/server.pem" 2>/dev/null
    rm "$target/request" "$target/extensions"
    cp "$dir/ca.pem" "$target/ca.pem"
    chmod 644 "$target/server.pem" "$target/ca.pem"
    chmod 755 "$dir" "$target"
done
