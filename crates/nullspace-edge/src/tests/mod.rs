//! Requests over TCP to an edge whose sandbox is a server of the test.

mod hostile;
mod local;
mod passing;
mod sockets;
mod support;
mod tokens;
