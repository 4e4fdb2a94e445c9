# Sourced by in_l1.sh: end-to-end tests of the whole service (crates/nullspace/tests/e2e), the same that run in the outer machine
# under QEMU. By default those of the main job: build from a registry's image with a start command, snapshot, a sandbox with the
# very process that ran; a snapshot and a fork of a sandbox at work; and the driver that `auto` chooses. `make test-long` has more:
# two sandboxes that share nothing but the past (the drivers' tests have two such machines), steps with their layers, and pauses.

export NULLSPACE_VMM=firecracker NULLSPACE_TEST_EXPECT_FIRECRACKER=works NULLSPACE_FIRECRACKER=/opt/bin/firecracker
export NULLSPACE_JAILER=/opt/bin/jailer NULLSPACE_GUEST_DIR=/in/guest NEXTEST_BIN_EXE_nullspace=/in/nullspace
# Where programs are found without a PATH.
for program in busybox docker-registry; do
  [[ -x /usr/bin/$program ]] || cp "/opt/bin/$program" /usr/bin/
done

# On a disk, as a service's data is, not in this host's memory.
mkdir -p /job/tmp
export TMPDIR=/job/tmp
# shellcheck disable=SC2086  # names of tests
tested service /in/e2e ${TESTS:-spine::a_service hosts::auto life:: ${LONG:+hosts:: unique:: pauses:: steps::output_is_kept steps::steps_leave}}
unset TMPDIR NULLSPACE_TEST_EXPECT_FIRECRACKER NULLSPACE_FIRECRACKER NULLSPACE_JAILER NULLSPACE_GUEST_DIR
