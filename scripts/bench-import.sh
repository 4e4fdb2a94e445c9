#!/bin/sh
# What an import costs: an image into an ext4 file, against skopeo + umoci + mke2fs and against the floor. The last lines
# are `bench: <figure> <value> <unit>`. Keeps its images under target/bench/import; needs root, for umoci and to make them.
set -eu
cd "$(dirname "$0")/.."
cargo build --release --locked --quiet -p nullspace-rootfs --example import_image
exec python3 tools/bench_import.py "$@"
