#!/bin/bash
# Runs in the nested host: see service.sh.
set -euo pipefail
export NULLSPACE_VMM=firecracker NULLSPACE_TEST_EXPECT_FIRECRACKER=works NULLSPACE_FIRECRACKER=/opt/bin/firecracker NULLSPACE_JAILER=/opt/bin/jailer
export NULLSPACE_GUEST_DIR=/in/guest NEXTEST_BIN_EXE_nullspace=/in/nullspace
# Where programs are found without a PATH.
for program in busybox docker-registry; do
  [[ -x /usr/bin/$program ]] || cp "/opt/bin/$program" /usr/bin/
done
modprobe -a dm_mod dm_snapshot loop
# Runs a test program. QEMU 7.2's emulation of SVM now and then loses a guest while it boots: the guest's kernel, without its
# per-processor data, faults in its page fault handler until it is reset (seen once in some sixty boots). A run whose output
# shows just that says nothing of what is tested, and is made once more; any other failure is one.
tested() { # program, arguments
  if "$@" 2>&1 | tee /job/output; then return; fi
  grep -q asm_exc_page_fault /job/output || return 1
  echo "--- the emulator lost a guest: once more"
  "$@"
}

# On a disk, as a service's data is, not in this host's memory.
mkdir -p /job/tmp
export TMPDIR=/job/tmp
# One by one: what the emulator spoils is little then.
# shellcheck disable=SC2086  # names of tests
/in/e2e --list --format=terse $TESTS | sed -n 's/: test$//p' >/job/tests
[[ -s /job/tests ]]
while read -r test; do
  tested /in/e2e --exact --nocapture "$test" </dev/null
done </job/tests
[[ -z $(pgrep -x firecracker || true) ]] || { echo "Firecracker runs on" >&2; exit 1; }
