//! The edge: requests to ports of sandboxes, proxied.
//!
//! ```text
//!   {port}-{sandbox}.<domain> ─┐                                          ┌─ HTTP/1.1, WebSocket
//!   /p/{sandbox}/{port}/… ─────┼──> check ──> Ports::enter ──> dial(port) ┼─ streams, SSE, trailers
//!   127.0.0.1:<own port> ──────┘              (token, wake)               └─ HTTP/2 (gRPC)
//! ```
//!
//! - [`Edge`] answers requests. [`Edge::claims`] says which ones of the API's listener are its own: everything below the domain and below
//!   `/p`, whether it names a port or not, so nothing there reaches the API.
//! - [`LocalListeners`] are the way in where there is no domain.
//! - [`Screened`] refuses requests whose framing could be read in two ways, before the HTTP parser.
//! - Bodies are passed on as they come, in bounded memory. Every wait and every count has a limit: [`EdgeLimits`].
//! - The edge decides nothing about access: [`Ports`](nullspace_service::Ports) does.
//!
//! `docs/ports.md` is for users and operators.

mod address;
mod answer;
mod body;
mod check;
mod course;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod gate;
mod headers;
mod local;
mod origin;
mod places;
mod pool;
mod proxy;
mod screen;
mod settings;
mod socket;
mod token;
mod tunnel;

#[cfg(test)]
mod tests;

pub use body::{BodyError, EdgeBody};
pub use local::{LocalListeners, Locals};
pub use proxy::{Edge, Hold, Visit};
pub use screen::{Opener, Screen, Screened};
pub use settings::{EdgeLimits, EdgeSettings};
pub use socket::prepare;
