//! The wire types of the HTTP API: what travels between a client and the service, and nothing else.
//!
//! ```text
//!   client                                            service
//!     CreateTemplateRequest  ── POST /v1/templates/builds ──>  TemplateBuild
//!                            <── SSE  …/builds/{id}/logs ────  TemplateBuildLogEntry*
//!     CreateSandboxRequest   ── POST /v1/sandboxes ─────────>  CreateSandboxResponse
//!     ExecRequest            ── POST …/{id}/exec ───────────>  ExecResponse
//!     ExecClientMessage*    <── WebSocket …/{id}/ws ────────>  ExecServerMessage*
//!     PtyClientMessage*     <── WebSocket …/{id}/ws ────────>  PtyServerMessage*
//!     LifecycleClientMessage <─ WebSocket …/lifecycle/ws ───>  LifecycleServerMessage*
//!     anything that fails    <───────────────────────────────  ErrorResponse { code, error_detail? }
//! ```
//!
//! The types are those of `contract/openapi.json`, under the same names. Rules that hold for all of them:
//!
//! - Every optional field of a request may be absent or `null`; both mean the same. Unknown fields are ignored, as
//!   published clients may be newer than the service.
//! - An absent value is left out of answers, never sent as `null`.
//! - Times are RFC 3339 in UTC with microseconds ([`Time`]).
//! - A secret ([`Secret`]) prints nothing and refuses to be serialised, except by [`to_wire_json`], which a client
//!   calls to send it.
//!
//! There is no logic here: validation belongs to the engine, status codes to the server.

#![warn(clippy::cast_possible_truncation)]

mod build;
mod command;
mod envs;
mod error;
mod exec;
mod failure;
mod file;
mod git;
mod key;
mod life;
mod lifecycle;
mod log;
mod plan;
mod preview;
mod readiness;
mod registry_auth;
mod request;
mod sandbox;
mod search;
mod secret;
mod signed;
mod ssh;
mod step;
mod subscription;
mod template;
mod terminal;
mod time;
mod upload;
mod warm_pool;
mod watch;

pub use build::*;
pub use command::*;
pub use envs::Envs;
pub use error::*;
pub use exec::*;
pub use failure::*;
pub use file::*;
pub use git::*;
pub use key::*;
pub use life::*;
pub use lifecycle::*;
pub use log::*;
pub use plan::*;
pub use preview::*;
pub use readiness::*;
pub use registry_auth::*;
pub use request::*;
pub use sandbox::*;
pub use search::*;
pub use secret::{Secret, to_wire_json};
pub use signed::*;
pub use ssh::*;
pub use step::*;
pub use subscription::*;
pub use template::*;
pub use terminal::*;
pub use time::Time;
pub use upload::*;
pub use warm_pool::*;
pub use watch::*;

/// A JSON object whose keys are not fixed by the contract.
pub type JsonObject = serde_json::Map<String, serde_json::Value>;
