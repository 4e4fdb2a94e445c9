//! PID 1 of guests whose agent passes itself off as an older one: see `disguise` in the library. For tests of hosts; no guest
//! image has it.

use std::process::ExitCode;

fn main() -> ExitCode {
    nullspace_init::program()
}
