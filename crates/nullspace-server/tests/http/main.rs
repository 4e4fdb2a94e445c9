//! The HTTP layer against a service in memory.
#![allow(clippy::unwrap_used, reason = "tests")]

mod answers;
mod connections;
mod files;
mod floods;
mod git;
mod http2;
mod keys;
mod life;
mod lifecycle;
mod lifecycle_sockets;
mod operators;
mod own_keys;
mod pages;
mod ports;
mod promotions;
mod refusals;
mod search;
mod signed;
mod sockets;
mod ssh;
mod support;
mod templates;
mod terminals;
mod uploads;
mod warm_pools;
mod watches;
mod webhooks;
