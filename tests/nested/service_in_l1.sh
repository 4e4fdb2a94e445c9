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
. /in/tested.sh

# On a disk, as a service's data is, not in this host's memory.
mkdir -p /job/tmp
export TMPDIR=/job/tmp
# shellcheck disable=SC2086  # names of tests
tested /in/e2e $TESTS
[[ -z $(pgrep -x firecracker || true) ]] || { echo "Firecracker runs on" >&2; exit 1; }
