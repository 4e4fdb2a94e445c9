# Sourced by in_l1.sh: the drivers' conformance tests, and those that want this kernel: unlike the outer machine's it has a
# device mapper and control groups of version 2.

export NULLSPACE_VMM=firecracker NULLSPACE_TEST_GUEST=/in/guest NULLSPACE_TEST_FIRECRACKER=/opt/bin
export NULLSPACE_TEST_BUSYBOX=/opt/bin/busybox NULLSPACE_TEST_CYCLES=$CYCLES

conformance() { # group, folder for machines, tests
  local group=$1 folder=$2
  shift 2
  mkdir -p "$folder"
  TMPDIR=$folder tested "$group" /in/conformance "$@"
}

reflinks() { # makes a filesystem whose files share blocks
  mountpoint -q /job/xfs && return
  truncate -s 2G /job/xfs.img
  mkfs.xfs -q -m reflink=1 /job/xfs.img
  mkdir -p /job/xfs
  mount -o loop /job/xfs.img /job/xfs
}

mkdir -p /job/tmp
export TMPDIR=/job/tmp
if [[ -n $TESTS ]]; then
  # shellcheck disable=SC2086  # names of tests
  conformance asked /job/tmp $TESTS
else
  # What differs by the kernel; the rest of these programs runs in the outer machine, if its /dev/kvm opens.
  tested unit /in/unit firecracker::disk:: firecracker::overlay::
  if [[ -n $HOST_KVM ]]; then
    tested host /in/host a_started_machine a_vmm_that_is_killed a_service_killed a_trial_boot ${LONG:+a_dropped_machine}
  else
    tested host /in/host
  fi

  # Each test of the drivers once, spread over the ways in which a restored machine gets its disk and Firecracker is started;
  # `make test-long` runs all of them where a way differs.
  reflinks
  # A filesystem as most hosts have it, ext4, whose files share no blocks: disks of restored machines are mapped.
  export NULLSPACE_TEST_COPY_UP_TO=0
  if [[ -n $LONG ]]; then
    conformance mapped /job/tmp
  else
    conformance mapped /job/tmp a_booted two_machines_go_on_from_one_snapshot_each machines_come_and_go capture::nothing
  fi
  unset NULLSPACE_TEST_COPY_UP_TO
  # The same filesystem, little data: disks are copied.
  conformance copied /job/tmp a_restored_machine a_snapshot_resumes_without ${LONG:+two_machines}
  # One whose files share blocks.
  conformance reflinks /job/xfs/tmp capture::what_a_running_machine ${LONG:+two_machines a_restored_machine capture::}
  # As without root: no jailer, no network card.
  NULLSPACE_TEST_PLAIN=1 conformance plain /job/tmp a_snapshot_from_another ${LONG:+two_machines a_restored_machine}
  umount /job/xfs
fi
unset TMPDIR NULLSPACE_TEST_GUEST NULLSPACE_TEST_FIRECRACKER NULLSPACE_TEST_BUSYBOX NULLSPACE_TEST_CYCLES
