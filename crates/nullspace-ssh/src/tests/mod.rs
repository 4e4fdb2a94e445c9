//! The SSH server with OpenSSH's own client, before a sandbox that runs its programs on this host.

mod ends;
mod refusals;
mod sessions;
mod support;

pub(crate) use self::support::keys;
