//! A client of BuildKit: a Dockerfile and a context go in, the archive of an image comes out.
//!
//! ```text
//!            BuildKit                                this crate
//!   Control.Solve / Status  <──────────── endpoint ── solve       what to build; progress as events
//!   FileSync  "context", "dockerfile" ──> session ── tree, patterns, sync      files, as they are asked for
//!   Secrets, Auth ──────────────────────> session ── vault                     values from memory, by name and host
//!   FileSend (an archive) ──────────────> session ── receive                   to a file that the caller names
//!   Docker Engine's images (save, remove) <────────── engine                   where BuildKit cannot send archives
//! ```
//!
//! Two kinds of BuildKit are spoken to: the one inside a Docker Engine, by `POST /grpc` and `POST /session` on its socket,
//! which become HTTP/2; and `buildkitd`, on a Unix socket or over TCP with mutual TLS. Either may be out of this host's reach: then
//! the caller opens its streams ([`Dial`]). The session is HTTP/2 the other way round: BuildKit asks, this crate answers.
//!
//! Everything is bounded: messages, pending files, the archive. Files of the context are read when BuildKit asks for them,
//! in pieces. Secrets and registry logins are answered from memory and appear in no error and no `Debug`.
//!
//! Knows nothing of templates or tenants. Protocols: BuildKit's `api/services/control`, `session/*`, and
//! `tonistiigi/fsutil`; generated code from `bollard-buildkit-proto`.
//! # Example
//!
//! ```
//! use nullspace_buildkit::{BuildKit, Endpoint, Source, Tree};
//!
//! let mut context = Tree::default();
//! context.file("app/main.py", None, Source::Memory("print('hello')".into()))?;
//! assert!(context.get("app/main.py").is_some());
//! assert!(context.file("../outside", None, Source::Memory("".into())).is_err());
//!
//! let buildkit = BuildKit::new("tcp://builder".parse()?, None);
//! assert_eq!(buildkit.endpoint(), &Endpoint::Tcp { host: "builder".into(), port: 1234 });
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`BuildKit::build`] then takes a [`Job`] with this context.

#![warn(clippy::cast_possible_truncation)]

mod connect;
mod endpoint;
mod engine;
mod error;
mod failure;
mod job;
mod patterns;
mod progress;
mod session;
mod solve;
mod tree;

pub use connect::{Dial, Tls, TlsError};
pub use endpoint::{Endpoint, InvalidEndpoint};
pub use error::Error;
pub use failure::{Cause, Failure};
pub use job::{Job, Login, Output};
pub use patterns::{InvalidPattern, not_ignored};
pub use progress::{Event, Step};
pub use session::Duplex;
pub use solve::{About, Archive, BuildKit};
pub use tree::{InvalidPath, Source, Tree};
