#!/bin/sh
# Builds what a release is made of, and tries it: the sdist from this tree, the wheel from the sdist, and the demo from
# the wheel, installed in an empty virtual environment.
#
#   deploy/release.sh [DIR]      # dist/ without one
#
# The version is pyproject.toml's, and nowhere else (the image's tag in deploy/kubernetes is checked against it); it has
# to have a section in deploy/CHANGELOG.md.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$root/pyproject.toml")
grep -qF "## [$version]" "$root/deploy/CHANGELOG.md" || {
    echo "deploy/CHANGELOG.md has no section [$version]: describe what is new before you release it" >&2
    exit 1
}
dist=${1:-$root/dist}
mkdir -p "$dist"
dist=$(cd "$dist" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/build"
"$work/build/bin/pip" install -q build
"$work/build/bin/python" -m build --outdir "$work/dist" "$root" >"$work/log" 2>&1 || {
    cat "$work/log" >&2
    exit 1
}

python3 -m venv "$work/empty"
wheel=$(echo "$work"/dist/*.whl)
"$work/empty/bin/pip" install -q "${wheel}[server]"
cd "$work" # nothing of the tree is on the way
"$work/empty/bin/jido-nats" --version
"$work/empty/bin/jido-nats" demo --json >"$work/demo"
tail -n 1 "$work/demo"

mv "$work"/dist/* "$dist/"
ls "$dist"
