//! Any pack: its index is refused or lies within the file, and each of its chunks is refused or as long as the index says.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| nullspace_chunks::fuzzing::pack(bytes));
