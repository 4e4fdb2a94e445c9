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
//!                                     |
//!  processes    prepare -> spawn -> supervise          reaper: waits for every child and orphan
//!  restored     entropy, clock, name, network -> generation -> resume hooks
//! ```
//!
//! Threads, no async runtime: it is idle nearly always, and its memory is part of every snapshot. The host is trusted,
//! the image and the processes are not: nothing of theirs ends this process or holds the agent up.

#![warn(clippy::cast_possible_truncation)]

mod agent;
pub mod boot;
mod connection;
mod files;
mod filesystem;
mod generation;
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
mod shutdown;
mod stream;
mod transport;
mod users;
mod wake;
mod workers;

pub use agent::{Agent, Ground};
pub use connection::serve;
pub use stream::{Stream, StreamKind};
