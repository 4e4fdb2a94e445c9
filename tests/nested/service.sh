#!/usr/bin/env bash
# Runs end-to-end tests of the whole service (crates/nullspace/tests/e2e) on a real Firecracker with real guests, in a
# nested host: the same tests that run here under QEMU. By default those of the main job: build from a registry's image
# with a start command, snapshot, two sandboxes at once, each its own, nothing left behind; and every step with its layers.
#
# usage: tests/nested/service.sh [TEST...]      names or parts of names of tests
# needs: as tests/nested/firecracker.sh
set -euo pipefail
cd "$(dirname "$0")/../.."

guest=target/guest
# As in firecracker.sh.
e2e=$(cargo test --release --locked --quiet --workspace --no-run --message-format=json | python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("reason") == "compiler-artifact" and message.get("executable") and message["target"]["name"] == "e2e":
        print(message["executable"])')
[[ -x $e2e ]]
[[ $# -gt 0 ]] || set -- spine::a_service unique:: hosts:: steps::steps_leave

exec python3 tools/nested_host.py --file tests/nested/tested.sh:/in/tested.sh \
  --file "$e2e:/in/e2e" --file target/release/nullspace:/in/nullspace \
  --bin target/firecracker/firecracker --bin target/firecracker/jailer --bin "$(command -v busybox)" \
  --bin "$(command -v docker-registry)" \
  --file "$guest/vmlinux:/in/guest/vmlinux" --file "$guest/vmlinuz:/in/guest/vmlinuz" \
  --file "$guest/initramfs.cpio:/in/guest/initramfs.cpio" \
  --env "TESTS=$*" --env "RUST_BACKTRACE=${RUST_BACKTRACE:-0}" \
  --timeout "${NULLSPACE_NESTED_TIMEOUT:-900}" --script tests/nested/service_in_l1.sh
