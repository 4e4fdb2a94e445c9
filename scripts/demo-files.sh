#!/usr/bin/env bash
# Makes the build context of the demo's Dockerfile in a folder: the Dockerfile and Debian's static busybox, which is unpacked and
# not installed. Does not download it again.
# usage: demo-files.sh DIR      needs: apt, dpkg; no root rights
set -euo pipefail
mkdir -p "$1"
cd "$1"
if [ ! -x busybox ]; then
    part=$(mktemp -d .part.XXXXXX)
    trap 'rm -rf "$part"' EXIT
    (cd "$part" && timeout 300 apt-get -q download busybox-static >log 2>&1) || {
        cat "$part/log" >&2
        echo "demo-files: busybox-static cannot be downloaded; run apt-get update with Debian's main component" >&2
        exit 1
    }
    dpkg-deb -x "$part"/*.deb "$part/root"
    program=$(find "$part/root" -path '*/bin/busybox' -type f | head -n 1)
    chmod 755 "$program"
    mv "$program" busybox
    rm -rf "$part"
fi
# Symbolic links: for COPY --from, BuildKit hashes the bytes of each hard link again, which takes minutes in software emulation.
cat > Dockerfile <<'END'
FROM scratch AS build
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
RUN mkdir /site && echo "built by a RUN step, on Linux $(uname -r)" > /site/index.html

FROM scratch
COPY --from=build / /
CMD ["httpd", "-f", "-p", "8080", "-h", "/site"]
END
