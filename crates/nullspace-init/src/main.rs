//! PID 1 of the guest, and the kernel's helper for modules: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        nullspace_init::boot::run()
    }
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(name) = nullspace_init::modprobe::asked(&arguments) {
        return if nullspace_init::modprobe::load(name) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    eprintln!("nullspace-init is the first process of a nullspace guest; it does nothing elsewhere.");
    ExitCode::from(2)
}
