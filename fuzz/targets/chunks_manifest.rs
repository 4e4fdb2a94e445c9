//! Any manifest, and any manifest over another: refused, or sorted pieces within the image that survive being written again.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| nullspace_chunks::fuzzing::manifest(bytes));
