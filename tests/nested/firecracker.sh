#!/usr/bin/env bash
# Runs the drivers' conformance tests on a real Firecracker with real guests, and the tests that want another kernel or
# root, on a machine whose KVM may not work: in a nested host (tools/nested_host.py). Takes about 6 minutes on two cores
# that have nothing else to do, once the nested host's image is made.
#
# usage: tests/nested/firecracker.sh [TEST...]       names of tests of crates/nullspace-vmm/tests/conformance; default: all
# needs: what tools/nested_host.py needs, scripts/guest-image.sh and scripts/fetch-firecracker.sh done, cargo
set -euo pipefail
cd "$(dirname "$0")/../.."

guest=target/guest
for file in "$guest/vmlinux" "$guest/initramfs.cpio" target/firecracker/firecracker target/firecracker/jailer; do
  [[ -e $file ]] || { echo "nested: $file is missing" >&2; exit 2; }
done

# The test binaries of this build, as cargo names them. The whole workspace, as `make test` builds it: with another choice of
# packages cargo builds dependencies again with other features.
binaries=$(cargo test --release --locked --quiet --workspace --no-run --message-format=json | python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("reason") == "compiler-artifact" and message.get("executable") and message["profile"]["test"]:
        print(message["target"]["name"], message["executable"])')
binary() { # name of a target
  awk -v name="$1" '$1 == name { print $2; found = 1 } END { exit !found }' <<<"$binaries"
}
unit=$(binary nullspace_vmm)
net=$(binary net_isolation)
host=$(binary firecracker_host)
conformance=$(binary conformance)

exec python3 tools/nested_host.py --file tests/nested/tested.sh:/in/tested.sh \
  --file "$unit:/in/unit" --file "$net:/in/net" --file "$host:/in/host" --file "$conformance:/in/conformance" \
  --bin target/firecracker/firecracker --bin target/firecracker/jailer --bin "$(command -v busybox)" \
  --file "$guest/vmlinux:/in/guest/vmlinux" --file "$guest/vmlinuz:/in/guest/vmlinuz" \
  --file "$guest/initramfs.cpio:/in/guest/initramfs.cpio" \
  --env "TESTS=$*" --env "CYCLES=${NULLSPACE_TEST_CYCLES:-50}" --env "RUST_BACKTRACE=${RUST_BACKTRACE:-0}" \
  --timeout "${NULLSPACE_NESTED_TIMEOUT:-1100}" --script tests/nested/in_l1.sh
