#!/bin/sh
# Makes a root tree from Debian packages, as a tar. Idempotent: made again only when its packages or its account change.
# Needs root or user namespaces (mmdebstrap chooses).
# usage: root-image.sh base|builder OUT.tar
#   base     the root of the built-in template `base`
#   builder  the root of builder machines: a Docker Engine with its BuildKit, and what that calls
set -eu
kind=$1
out=$2
suite=bookworm
case "$kind" in
base)
    packages=python3,ca-certificates,curl,git
    # The account that clients name as `user`.
    account="useradd --create-home --shell /bin/bash user"
    hook="mkdir -p \"\$1/workspace\" && chroot \"\$1\" $account"
    ;;
builder)
    # git for `ADD` and FROM of repositories, xz-utils for archives that `ADD` unpacks.
    packages=docker.io,ca-certificates,git,iptables,kmod,xz-utils
    account=
    # The docker command is for people, and as large as all the rest.
    hook='rm -f "$1/usr/bin/docker"'
    ;;
*)
    echo "root-image: base or builder, not $kind" >&2
    exit 2
    ;;
esac
stamp="$suite $packages${account:+ $account}"
[ -s "$out" ] && [ "$(cat "$out.stamp" 2>/dev/null)" = "$stamp" ] && exit 0
mkdir -p "$(dirname "$out")"
trap 'rm -f "$out.part"' EXIT
echo "$kind: making its root from Debian packages ($packages)" >&2
mmdebstrap --quiet --format=tar --variant=minbase --include="$packages" \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin "$1"/etc/hostname "$1"/etc/resolv.conf' \
    --customize-hook="$hook" \
    --skip=output/dev \
    "$suite" "$out.part"
mv "$out.part" "$out"
echo "$stamp" > "$out.stamp"
