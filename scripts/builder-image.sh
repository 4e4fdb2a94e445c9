#!/bin/sh
# Makes the root tree of builder machines from Debian packages, as a tar: a Docker Engine with its BuildKit, and what that calls.
# Idempotent: made again only when its packages change. Needs root or user namespaces (mmdebstrap chooses).
# usage: builder-image.sh OUT.tar
set -eu
out=$1
# git for `ADD` and FROM of repositories, xz-utils for archives that `ADD` unpacks.
packages=docker.io,ca-certificates,git,iptables,kmod,xz-utils
suite=bookworm
stamp="$suite $packages"
[ -s "$out" ] && [ "$(cat "$out.stamp" 2>/dev/null)" = "$stamp" ] && exit 0
mkdir -p "$(dirname "$out")"
trap 'rm -f "$out.part"' EXIT
echo "builder: making the root of builder machines from Debian packages ($packages)" >&2
# The docker command is for people, and as large as all the rest.
mmdebstrap --quiet --format=tar --variant=minbase --include="$packages" \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin "$1"/etc/hostname "$1"/etc/resolv.conf' \
    --customize-hook='rm -f "$1/usr/bin/docker"' \
    --skip=output/dev \
    "$suite" "$out.part"
mv "$out.part" "$out"
echo "$stamp" > "$out.stamp"
