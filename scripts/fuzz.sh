#!/usr/bin/env bash
# Fuzzes every parser of hostile bytes: compiles the targets of fuzz/, writes their seeds, and runs one after the other.
#
#   fuzz/targets/*.rs ── stable Rust, LLVM's coverage counters ──> target/fuzz/bin/TARGET ── libFuzzer ──> target/fuzz/corpus/TARGET
#   fuzz/src/seeds.rs ── data of the unit tests ──────────────────────────────────────────────────────┘
#
# What a target finds is in target/fuzz/found/TARGET-*; `target/fuzz/bin/TARGET FILE` shows it again. A corpus stays for the
# next run.
#
#   NULLSPACE_FUZZ_SECONDS   time of each target (default 15)
#   NULLSPACE_FUZZ_JOBS      targets that run at a time (default 1)
#
# usage: fuzz.sh [--build] [TARGET...]      --build: only compile
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${NULLSPACE_FUZZ_SECONDS:-15}
jobs=${NULLSPACE_FUZZ_JOBS:-1}
folder=$PWD/target/fuzz

# What `cargo fuzz build --sanitizer none` sets, all of it stable: the pass that counts edges and remembers the operands of
# comparisons. Safe Rust needs no sanitizer besides; panics, overflows and failed assertions end a target.
counters="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares"
host=$(rustc -vV | sed -n 's/^host: //p')
# With --target, build scripts and procedural macros go without the counters.
RUSTFLAGS=$(echo $counters) CARGO_TARGET_DIR=$folder/build \
    cargo build --quiet --locked --release --manifest-path fuzz/Cargo.toml --target "$host" --bins
built=$folder/build/$host/release
mkdir -p "$folder/bin" "$folder/corpus" "$folder/found"
all=()
for source in fuzz/targets/*.rs; do
    name=$(basename "$source" .rs)
    all+=("$name")
    ln -sf "$built/$name" "$folder/bin/$name"
    mkdir -p "$folder/corpus/$name"
done
"$built/seeds" "$folder/corpus"
[ "${1:-}" = --build ] && exit

fuzz() {
    local name=$1 log=$folder/$1.log options=(-max_len=4096)
    case $name in
        # JSON is found sooner with its words.
        oci_manifest | oci_config) options+=(-dict=fuzz/dictionaries/json.dict) ;;
        # e2fsck is asked about each image.
        ext4_write) options+=(-max_len=2048) ;;
        oci_merge) options+=(-max_len=1024) ;;
    esac
    # An input that takes 10 s, or 1 GiB of memory, is a fault like a panic.
    if "$folder/bin/$name" "${options[@]}" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 \
        -artifact_prefix="$folder/found/$name-" "$folder/corpus/$name" > "$log" 2>&1
    then
        local runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        echo "$name: $runs inputs, $(sed -n 's/.*DONE *\(cov: [0-9]*\).*/\1/p' "$log"), nothing found"
    else
        echo "$name: FAILED, see $log; its end:"
        grep -v '^#' "$log" | tail -n 40
        return 1
    fi
}
export -f fuzz
export folder seconds

names=("$@")
[ ${#names[@]} -gt 0 ] || names=("${all[@]}")
failed=0
printf '%s\n' "${names[@]}" | xargs -P "$jobs" -I{} bash -c 'fuzz {}' || failed=1
echo "part: tests=${#names[@]} failed=$(for name in "${names[@]}"; do grep -q '^stat::number_of_executed_units' "$folder/$name.log" && ! grep -q 'ERROR: libFuzzer' "$folder/$name.log" || echo; done | wc -l)"
exit $failed
