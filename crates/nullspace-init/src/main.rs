//! PID 1 of the guest: see the library.

fn main() {
    if std::process::id() != 1 {
        eprintln!("nullspace-init is the first process of a nullspace guest; it does nothing elsewhere.");
        std::process::exit(2);
    }
    nullspace_init::boot::run()
}
