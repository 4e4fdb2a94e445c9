#!/bin/bash
# Runs in the nested host: see firecracker.sh.
set -euo pipefail
export NULLSPACE_VMM=firecracker NULLSPACE_TEST_GUEST=/in/guest NULLSPACE_TEST_FIRECRACKER=/opt/bin
export NULLSPACE_TEST_BUSYBOX=/opt/bin/busybox NULLSPACE_TEST_CYCLES=$CYCLES
modprobe -a veth nf_tables nft_chain_nat nft_masq nft_ct nft_reject_inet 2>/dev/null || true

# A filesystem as most hosts have it: ext4, whose files share no blocks.
mkdir -p /work/tmp
# shellcheck disable=SC2086
TMPDIR=/work/tmp /in/conformance --test-threads=1 --nocapture $TESTS

left=$(pgrep -x firecracker || true)
[[ -z $left ]] || { echo "a firecracker process is left: $left" >&2; exit 1; }
left=$(ls -d /sys/fs/cgroup/nullspace-* 2>/dev/null || true)
[[ -z $left ]] || { echo "a control group is left: $left" >&2; exit 1; }
