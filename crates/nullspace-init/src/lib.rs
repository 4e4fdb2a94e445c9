//! PID 1 and agent inside the guest.
//!
//! It is in the initramfs, not in the image, so that any image boots, one with nothing but a static binary too.
//!
//! ```text
//!  boot: /proc, /sys, /dev -> modules -> transport opened -> root mounted, filled up, entered (chroot; PID 1 stays)
//!                                            |
//!     virtio-serial port `nullspace.agent`, or vsock port 1024
//!                                            |
//!  connection   reader thread ---- frames ---+--- outbox ---- writer thread
//!                   |                                 ^
//!  session      OPEN -> channel -> a worker thread: exec, attach, files, probe, freeze ..
//!                               -> one thread for all connections to ports
//!                                     |
//!  processes    prepare -> spawn -> supervise          reaper: waits for every child and orphan
//!  halt         all processes stop before a snapshot
//!  restored     entropy, clock, name, network -> generation -> processes go on -> resume hooks
//! ```
//!
//! Threads, no async runtime: it is idle nearly always, and its memory is part of every snapshot. The host is trusted,
//! the image and the processes are not: nothing of theirs ends this process or holds the agent up.

#![warn(clippy::cast_possible_truncation)]

mod agent;
pub mod boot;
mod connection;
mod dial;
#[cfg(feature = "disguise")]
mod disguise;
mod files;
mod filesystem;
mod generation;
mod halt;
mod identity;
mod leftovers;
mod log;
pub mod modprobe;
mod modules;
mod network;
mod outbox;
mod probe;
mod process;
mod resume;
mod ring;
mod root;
mod services;
mod session;
mod settings;
mod severed;
mod shutdown;
mod stream;
mod terminals;
mod transport;
mod uploads;
mod usage;
mod user_thread;
mod users;
mod wake;
mod watch;
mod workers;

pub use agent::{Agent, Ground};
pub use connection::serve;
pub use stream::{Stream, StreamKind};

use std::process::ExitCode;

/// The program: PID 1 of a guest, or the kernel's helper for modules in one.
pub fn program() -> ExitCode {
    if std::process::id() == 1 {
        boot::run()
    }
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(name) = modprobe::asked(&arguments) {
        return if modprobe::load(name) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    eprintln!("nullspace-init is the first process of a nullspace guest; it does nothing elsewhere.");
    ExitCode::from(2)
}
