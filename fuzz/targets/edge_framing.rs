//! Any bytes of a connection are refused, or are the same requests for hyper and for servers that are less strict.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| nullspace_edge::fuzzing::framing(bytes));
