#!/usr/bin/env bash
# Runs the drivers' conformance tests and the service's main job on a real Firecracker with real guests, and the tests that want
# another kernel, on a machine whose KVM may not work: in one nested host (tools/nested_host.py). Its last line begins with
# `part: test-firecracker` and has the number of tests, the losses survived and the seconds.
#
# usage: tests/nested/run.sh [drivers|service [TEST...]]
#          names or parts of names of tests of crates/nullspace-vmm/tests/conformance, or of crates/nullspace/tests/e2e
# needs: what tools/nested_host.py needs, scripts/guest-image.sh and scripts/fetch-firecracker.sh done, cargo
# NULLSPACE_TEST_LONG=1: fifty machines that come and go instead of three, and the tests in every way of making
#   disks, and every kind of step
# NULLSPACE_NESTED_INJECT_HANG=N: stops the emulator N times at random moments; the run must go on where it was
set -euo pipefail
cd "$(dirname "$0")/../.."

suites=${1:-drivers service}
shift $(($# > 0 ? 1 : 0))
long=${NULLSPACE_TEST_LONG:+1}
case $suites in
  drivers | service | "drivers service") ;;
  *) sed -n '/^# usage/,/^# needs/s/^# //p' "$0" >&2; exit 2 ;;
esac
guest=target/guest
for file in "$guest/vmlinux" "$guest/initramfs.cpio" target/firecracker/firecracker target/firecracker/jailer; do
  [[ -e $file ]] || { echo "nested: $file is missing" >&2; exit 2; }
done
python3 -m unittest discover --quiet -s tools -t tools

# The test binaries and the service of this build, as cargo names them. The whole workspace, as `make test` builds it: with
# another choice of packages cargo builds dependencies again with other features.
binaries=$(cargo test --locked --quiet --workspace --no-run --message-format=json | python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("reason") == "compiler-artifact" and message.get("executable"):
        kind = "test" if message["profile"]["test"] else "program"
        print(kind, message["target"]["name"], message["executable"])')
binary() { # test or program, name of a target
  awk -v kind="$1" -v name="$2" '$1 == kind && $2 == name { print $3; found = 1 } END { exit !found }' <<<"$binaries"
}
unit=$(binary test nullspace_vmm)
host=$(binary test firecracker_host)
conformance=$(binary test conformance)
e2e=$(binary test e2e)
nullspace=$(binary program nullspace)
host_kvm=
if (: <>/dev/kvm) 2>/dev/null; then host_kvm=1; fi

exec python3 tools/nested_host.py --part test-firecracker \
  --file tests/nested/tested.sh:/in/tested.sh --file tests/nested/drivers.sh:/in/drivers.sh \
  --file tests/nested/service.sh:/in/service.sh \
  --file "$unit:/in/unit" --file "$host:/in/host" --file "$conformance:/in/conformance" \
  --file "$e2e:/in/e2e" --file "$nullspace:/in/nullspace" \
  --bin target/firecracker/firecracker --bin target/firecracker/jailer --bin "$(command -v busybox)" \
  --bin "$(command -v docker-registry)" \
  --file "$guest/vmlinux:/in/guest/vmlinux" --file "$guest/vmlinuz:/in/guest/vmlinuz" \
  --file "$guest/initramfs.cpio:/in/guest/initramfs.cpio" \
  --env "SUITES=$suites" --env "TESTS=$*" --env "LONG=$long" --env "HOST_KVM=$host_kvm" \
  --env "CYCLES=$([[ -n $long ]] && echo 50 || echo 3)" --env "RUST_BACKTRACE=${RUST_BACKTRACE:-0}" \
  --timeout "${NULLSPACE_NESTED_TIMEOUT:-2700}" --script tests/nested/in_l1.sh
