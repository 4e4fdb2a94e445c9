//! HTTP: routes, authentication, server-sent events, errors as status codes.
//!
//! ```text
//!   TCP ── serve ──> edge ──────────> admit ──────────> route ──> handler ──> dyn Service
//!          limits    request id        Bearer key        path,     a few lines
//!                    error bodies      -> Caller         query,
//!                    panics, log       rate, places      body
//! ```
//!
//! - [`Service`](nullspace_service::Service) is all that this crate knows of the domain: calls in wire types, and an error
//!   without HTTP, which becomes a status in one place.
//! - Every answer that is no success has the contract's body, also those that the framework would give by itself.
//!   (What is no HTTP at all is refused by the HTTP implementation with a bare status.)
//! - [`openapi()`] is made from the routes; `contract/nullspace-openapi.json` is its checked-in copy, and tests hold it to
//!   the published contract.
//! - Operations of the contract that are not served yet stand in `contract/not-served.txt` and answer 501.

mod admit;
mod budget;
mod compress;
mod config;
mod connections;
mod cors;
mod edge;
mod error;
mod extract;
mod fields;
mod form;
mod held;
mod http2;
mod limits;
mod long;
mod metrics;
mod openapi;
mod places;
mod routes;
mod serve;
mod signed;
mod socket;
mod sse;
mod standing;
mod state;

pub use budget::BufferLimits;
pub use config::{ConnectionLimits, ServerConfig, SocketLimits};
pub use limits::RequestRate;
pub use openapi::openapi;
pub use routes::{Routers, router, routers};
pub use serve::{serve, serve_with_edge, serve_with_limits};

#[cfg(test)]
mod tests {
    use nullspace_service::TenantId;

    /// A tenant that is told from others by a letter.
    pub(crate) fn tenant(letter: char) -> TenantId {
        format!("tn_{}", String::from(letter).repeat(32)).parse().unwrap()
    }
}
