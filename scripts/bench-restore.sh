#!/bin/sh
# What a sandbox costs: create -> first exec answered against the same QEMU driven by a bare script, and whether the
# image's size matters. The last lines are `bench: <figure> <value> <unit>`. Keeps its data under target/bench, listens
# on a free port, leaves nothing running.
set -eu
cd "$(dirname "$0")/.."
exec python3 tools/bench_restore.py "$@"
