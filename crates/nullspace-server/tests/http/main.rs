//! The HTTP layer against a service in memory.
#![allow(clippy::unwrap_used, reason = "tests")]

mod answers;
mod connections;
mod files;
mod floods;
mod keys;
mod operators;
mod refusals;
mod sockets;
mod support;
mod templates;
