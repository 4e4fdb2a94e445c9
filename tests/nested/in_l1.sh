#!/bin/bash
# Runs in the nested host: see firecracker.sh.
set -euo pipefail
export NULLSPACE_VMM=firecracker NULLSPACE_TEST_GUEST=/in/guest NULLSPACE_TEST_FIRECRACKER=/opt/bin
export NULLSPACE_TEST_BUSYBOX=/opt/bin/busybox NULLSPACE_TEST_CYCLES=$CYCLES
modprobe -a dm_mod dm_snapshot loop

. /in/tested.sh

conformance() { # folder for machines, tests
  local folder=$1
  shift
  mkdir -p "$folder"
  echo "--- in $folder: ${*:-all tests}"
  TMPDIR=$folder tested /in/conformance "$@"
}

nothing_left() { # what, list
  [[ -z $2 ]] || { echo "left behind, $1: $2" >&2; exit 1; }
}

if [[ -n $TESTS ]]; then
  # shellcheck disable=SC2086
  conformance /job/tmp $TESTS
else
  # This kernel is another one than the outer machine's: it has a device mapper and control groups of version 2.
  mkdir -p /job/tmp
  export TMPDIR=/job/tmp
  echo "--- parts"
  /in/unit --nocapture firecracker::
  /in/net --test-threads=1
  tested /in/host

  # A filesystem as most hosts have it, ext4, whose files share no blocks: disks of restored machines are mapped.
  NULLSPACE_TEST_COPY_UP_TO=0 conformance /job/tmp

  # The same filesystem, little data: disks are copied.
  conformance /job/tmp two_machines

  # One whose files share blocks.
  truncate -s 2G /job/xfs.img
  mkfs.xfs -q -m reflink=1 /job/xfs.img
  mkdir -p /job/xfs
  mount -o loop /job/xfs.img /job/xfs
  conformance /job/xfs/tmp two_machines a_restored_machine capture::
  umount /job/xfs

  # As without root: no jailer, no network card.
  NULLSPACE_TEST_PLAIN=1 conformance /job/tmp two_machines a_restored_machine
fi

nothing_left processes "$(pgrep -x firecracker || true)"
nothing_left "control groups" "$(ls -d /sys/fs/cgroup/nullspace-* 2>/dev/null || true)"
nothing_left mappings "$(dmsetup ls | grep nullspace || true)"
nothing_left "loop devices" "$(losetup -a)"
nothing_left interfaces "$(ip -br link | grep -E '^(nsv|tap)' || true)"
nothing_left "nftables rules" "$(nft list ruleset)"
