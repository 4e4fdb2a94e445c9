#!/bin/sh
# What templates of one base cost: the built-in base's root image, and templates that each add a megabyte of random bytes.
# The last lines are `bench: <figure> <value> <unit>`. Needs root, to mount copies. Leaves nothing behind.
#   --sizes    also how chunk size and compression trade room for time (examples/chunk_sizes of nullspace-chunks)
set -eu
cd "$(dirname "$0")/.."
count=30
work=$(mktemp -d "${TMPDIR:-/var/tmp}/nullspace-bench-store.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

cargo build --release --locked --quiet -p nullspace -p nullspace-rootfs -p nullspace-data -p nullspace-chunks \
    --bin nullspace --example import_image --example store_growth --example chunk_sizes
examples=target/release/examples

echo "== the base's root image"
"$examples/import_image" tar target/guest/base.tar "$work/base.ext4" 4096
if [ "${1:-}" = --sizes ]; then
    echo "== chunk sizes"
    cp --sparse=always "$work/base.ext4" "$work/changed.ext4"
    mkdir "$work/mount"
    mount -o loop "$work/changed.ext4" "$work/mount"
    dd if=/dev/urandom of="$work/mount/added" bs=1M count=1 status=none || { umount "$work/mount"; exit 1; }
    umount "$work/mount"
    TMPDIR="$work" "$examples/chunk_sizes" "$work/base.ext4" "$work/changed.ext4"
    rm "$work/changed.ext4"
fi
echo "== $count layers of a megabyte each"
"$examples/store_growth" "$work/base.ext4" "$work/growth" "$count"
rm "$work/base.ext4"
echo "== $count templates, each with a step that adds a megabyte, through real machines"
TMPDIR="$work" python3 tools/bench_store.py --templates "$count"
