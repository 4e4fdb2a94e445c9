//! Any target with any hosts is refused, or names one port in one spelling, and is never both the edge's and the API's.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| nullspace_edge::fuzzing::address(bytes));
