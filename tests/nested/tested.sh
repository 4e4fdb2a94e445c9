# Sourced by the scripts that run in the nested host.

failed=0
# So long may one test take, in seconds, in the nested host of a busy machine. The tests' own waits are shorter.
limit=${LIMIT:-600}

# Runs tests of a program one by one, so that what the emulator spoils is little, and tells the nested host of each
# (tools/nested/ledger.py). What an earlier host has finished is left out. A test that fails does not keep the next from running.
#
# QEMU's emulation of SVM now and then loses a guest: its kernel, without its per-processor data, faults in its page fault
# handler for ever, or resets, which ends Firecracker with status 0. With two CPUs in the nested host that was one test in
# three; with one CPU (the default of nested_host.py) it was not seen in some forty. A test that failed with just that says
# nothing of what is tested: it counts as a loss of the host. Any other failure is one.
tested() { # group (a word), program, parts of tests' names (none: all)
  local group=$1 program=$2 test name status began
  shift 2
  "$program" --list --format=terse "$@" | sed -n 's/: test$//p' >/job/tests
  [[ -s /job/tests ]] || { echo "no test is called $*" >&2; return 1; }
  while read -r test; do
    name=$group/$test
    if grep -qxF "$name" /in/.finished; then continue; fi
    echo "begin $name" >/run/control
    began=$(cut -d' ' -f1 /proc/uptime)
    status=0
    timeout --kill-after=10 "$limit" "$program" --exact --nocapture --test-threads=1 "$test" </dev/null >/job/output 2>&1 || status=$?
    cat /job/output
    if [[ $status == 0 ]]; then
      status=pass
    elif grep -qE "asm_exc_page_fault|the guest's agent took longer than|ended(: | by itself .*how=\"?)exit status 0" /job/output; then
      echo "lost $name $(grep -m 1 -oE "asm_exc_page_fault|the guest's agent took longer than|exit status 0" /job/output)" >/run/control
      sleep 600 # this host is ended
    else
      echo "--- failed: $name, status $status"
      status=fail failed=1
    fi
    echo "end $name $status $(awk -v began="$began" '{ print $1 - began }' /proc/uptime)" >/run/control
  done </job/tests
}

# What must be gone when no test runs; `now` is a list of what is there.
nothing_left() { # what, now
  [[ -z $2 ]] || { echo "left behind, $1: $2" >&2; failed=1; }
}
