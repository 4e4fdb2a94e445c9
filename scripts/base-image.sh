#!/bin/sh
# Makes the root tree of the built-in `base` template from Debian packages, as a tar. Idempotent: made again only when
# its packages or its account change. Needs root or user namespaces (mmdebstrap chooses).
# usage: base-image.sh OUT.tar
set -eu
out=$1
packages=python3,ca-certificates,curl,git
# The account that clients name as `user`.
account="useradd --create-home --shell /bin/bash user"
suite=bookworm
stamp="$suite $packages $account"
[ -s "$out" ] && [ "$(cat "$out.stamp" 2>/dev/null)" = "$stamp" ] && exit 0
mkdir -p "$(dirname "$out")"
trap 'rm -f "$out.part"' EXIT
echo "base: making the base root from Debian packages ($packages)" >&2
mmdebstrap --quiet --format=tar --variant=minbase --include="$packages" \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin "$1"/etc/hostname "$1"/etc/resolv.conf' \
    --customize-hook='mkdir -p "$1/workspace"' \
    --customize-hook="chroot \"\$1\" $account" \
    --skip=output/dev \
    "$suite" "$out.part"
mv "$out.part" "$out"
echo "$stamp" > "$out.stamp"
