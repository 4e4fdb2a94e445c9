#!/usr/bin/env bash
# Unpacks Debian's Docker Engine into target/docker, for tests only. It is not installed: its package would start a
# service, join /etc, and put docker-ce out of a machine that has it. Which packages: group `docker` in packages.txt.
# Does nothing when they are there already; a newer version in apt's sources is not looked for.
#
# usage: scripts/fetch-docker.sh [DIR]      needs: apt, dpkg; no root rights
set -euo pipefail

cd "$(dirname "$0")/.."
dir=${1:-target/docker}
packages=()
programs=()
while read -r group package program _; do
  if [[ $group == docker ]]; then
    packages+=("$package")
    programs+=("$program")
  fi
done <scripts/packages.txt

whole() {
  local program
  for program in "${programs[@]}"; do
    [[ -x $1/usr/bin/$program || -x $1/usr/sbin/$program ]] || return 1
  done
}

if whole "$dir"; then
  exit 0
fi
mkdir -p "$(dirname "$dir")"
part=$(mktemp -d "$(dirname "$dir")/.docker.XXXXXX")
trap 'rm -rf "$part"' EXIT
mkdir "$part/debs" "$part/root"
(cd "$part/debs" && timeout 300 apt-get -q download "${packages[@]}" >../log 2>&1) || {
  cat "$part/log" >&2
  echo "fetch-docker: ${packages[*]} cannot be downloaded; run apt-get update with Debian's main component" >&2
  exit 1
}
for deb in "$part"/debs/*.deb; do
  dpkg-deb -x "$deb" "$part/root"
done
whole "$part/root" || {
  echo "fetch-docker: the packages ${packages[*]} do not hold ${programs[*]}" >&2
  exit 1
}
lacking=$(find "$part/root/usr/sbin" "$part/root/usr/bin" -type f -perm -u+x -exec ldd {} + 2>/dev/null |
  sed -n 's/^\s*\(lib.*\) => not found$/\1/p' | sort -u | tr '\n' ' ')
if [[ -n $lacking ]]; then
  echo "fetch-docker: these libraries are missing on this machine: $lacking" >&2
  exit 1
fi
chmod 755 "$part/root"
rm -rf "$dir"
mv "$part/root" "$dir"
echo "dockerd, containerd and runc of Debian are in $dir"
