# Sourced by the scripts that run in the nested host.

# Runs tests of a program one by one, so that what the emulator spoils is little. QEMU's emulation of SVM now and then loses a
# guest: its kernel, without its per-processor data, faults in its page fault handler for ever, or resets, which ends
# Firecracker with status 0. With two CPUs in the nested host that was one test in three; with one CPU (the default of
# nested_host.py) it was not seen in some forty. A test that failed with just that says nothing of what is tested and is made
# again, twice at most; any other failure is one.
tested() { # program, parts of tests' names (none: all)
  local program=$1 test attempt
  shift
  "$program" --list --format=terse "$@" | sed -n 's/: test$//p' >/job/tests
  [[ -s /job/tests ]] || { echo "no test is called $*" >&2; return 1; }
  while read -r test; do
    for attempt in 1 2 3; do
      if "$program" --exact --nocapture --test-threads=1 "$test" </dev/null 2>&1 | tee /job/output; then break; fi
      [[ $attempt -lt 3 ]] && grep -qE "asm_exc_page_fault|the guest's agent took longer than|ended(: | by itself .*how=\"?)exit status 0" /job/output || return 1
      echo "--- the emulator lost a guest: $test once more"
    done
  done </job/tests
}
