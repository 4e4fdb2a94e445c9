#!/bin/sh
# Installs what is missing of the packages that the given groups of scripts/packages.txt name. Idempotent; quick when nothing is missing.
# usage: setup.sh GROUP…      (build run guest base test)
set -eu
cd "$(dirname "$0")"
PATH=$PATH:/usr/sbin:/sbin

as_root=
[ "$(id -u)" = 0 ] || as_root=sudo
if [ -n "$as_root" ] && ! command -v sudo >/dev/null 2>&1; then
    as_root="no-sudo"
fi

missing=
for group in "$@"; do
    while read -r target package program _; do
        [ "$target" = "$group" ] || continue
        command -v "$program" >/dev/null 2>&1 || missing="$missing $package"
    done < packages.txt
done

if [ -n "$missing" ]; then
    echo "setup: installing$missing" >&2
    if [ "$as_root" = no-sudo ]; then
        echo "setup: not root and no sudo: as root, run: apt-get install$missing" >&2
        exit 1
    fi
    # QEMU's packages must be of one release: a qemu-utils from elsewhere (backports) is brought back to this one's.
    case "$missing" in
    *qemu*)
        release=$(. /etc/os-release && echo "$VERSION_CODENAME")
        missing=$(echo "$missing" | sed 's/ qemu-utils//')
        missing="$missing qemu-utils/$release"
        ;;
    esac
    $as_root apt-get update -qq
    # shellcheck disable=SC2086  # a list of package names of ours
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -qq -y --no-install-recommends --allow-downgrades $missing >/dev/null
fi

# The guest's kernel is downloaded, not installed; apt must know of it.
case " $* " in
*" guest "*)
    [ -f ../target/guest/kernel.version ] || [ "$as_root" = no-sudo ] || $as_root apt-get update -qq
    ;;
esac
case " $* " in
*" build "*)
    command -v cargo >/dev/null 2>&1 || {
        echo "setup: cargo is missing. Debian 12's Rust is too old for this project: install the stable toolchain with rustup (https://rustup.rs), at least 1.94." >&2
        exit 1
    }
    ;;
esac
case " $* " in
*" test "*)
    command -v cargo-nextest >/dev/null 2>&1 || cargo install --locked --quiet cargo-nextest
    ;;
esac
