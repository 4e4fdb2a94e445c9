# Sourced by the scripts that run in the nested host.

# Runs tests of a program one by one, so that what the emulator spoils is little. QEMU 7.2's emulation of SVM now and then
# loses a guest while it boots: its kernel, without its per-processor data, faults in its page fault handler for ever. Seen
# once in some sixty boots on a busy machine, with the fault on the guest's console or, before it has a console, as a guest
# that never says a word. A test that failed with just that says nothing of what is tested and is made again, twice at most;
# any other failure is one.
tested() { # program, parts of tests' names (none: all)
  local program=$1 test attempt
  shift
  "$program" --list --format=terse "$@" | sed -n 's/: test$//p' >/job/tests
  [[ -s /job/tests ]] || { echo "no test is called $*" >&2; return 1; }
  while read -r test; do
    for attempt in 1 2 3; do
      if "$program" --exact --nocapture --test-threads=1 "$test" </dev/null 2>&1 | tee /job/output; then break; fi
      [[ $attempt -lt 3 ]] && grep -qE "asm_exc_page_fault|the guest's agent took longer than" /job/output || return 1
      echo "--- the emulator lost a guest: $test once more"
    done
  done </job/tests
}
