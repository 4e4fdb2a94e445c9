//! Requests over TCP to an edge whose sandbox is a server of the test.

mod hostile;
mod local;
mod pages;
mod passing;
mod rpc;
mod sockets;
mod stalled;
mod support;
mod tenants;
mod tokens;
