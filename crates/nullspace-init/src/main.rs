//! PID 1 of the guest, and the kernel's helper for modules: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    nullspace_init::program()
}
