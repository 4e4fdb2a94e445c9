//! SSH into sandboxes: the certificates that let a client in, and the server that takes them.
//!
//! ```text
//!   owner ── create_ssh_access(public key) ──> certificate: principal = sandbox, key id = access, a short time
//!
//!   ssh -p 2222 sb_…@host ── certificate ──> authority's? in time? principal = user name? ── login ──> the access's row is in force
//!                                                                                              │
//!        shell, exec, sftp ── terminals and commands of the sandbox <──────────────────────────┤
//!        -L port forwarding ── dial of a port of its loopback <────────────────────────────────┘
//! ```
//!
//! | module | what |
//! |---|---|
//! | `authority` | the keys of host and authority; certificates, made and judged |
//! | `server` | connections: accepted, counted, supervised, ended |
//! | `connection` | one client: authentication, channels, requests |
//! | `program` | a shell, a command or sftp behind a channel |
//! | `forward` | a forwarded port behind a channel |
//! | `flow` | backpressure from the sandbox to the client |
//! | `places` | how many connections an address, a sandbox and the server have |
//! | `standing` | ends connections whose access is over |
//!
//! The server decides nothing about access: [`SshAccesses`](nullspace_service::SshAccesses) does. `docs/ssh.md` is for users and
//! operators.

mod authority;
mod connection;
mod flow;
mod forward;
mod gate;
mod places;
mod program;
mod server;
mod settings;
mod standing;

#[cfg(test)]
mod tests;

pub use authority::{Authority, InvalidKey, SshKeys};
pub use server::serve;
pub use settings::{SshLimits, SshSettings};
