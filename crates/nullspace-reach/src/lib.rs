//! Destinations that a caller may make the service connect to: the internet, and the operator's list.
//!
//! Callers name registries and webhooks, and registries name token servers and storage; the service must not become their way to
//! what only its own host reaches. So every request, wherever its URL came from, is judged by the address that is dialled:
//!
//! ```text
//!  URL ─┬─ an address ──────────> public, or listed for the port? ──> dialled
//!       └─ a name ──> resolved by [`Resolver`], inside the connection's set-up
//!                        └─ the public and the listed addresses among the answers, and no others ──> dialled
//! ```
//! The addresses that were judged are those that the connector gets: a name that means something else a moment later
//! (DNS rebinding) is judged anew with the next connection. A name that leads nowhere and one that leads to a closed
//! address end in the same error, so that names inside a network cannot be guessed; nothing is sent to a closed address,
//! so that its ports cannot be told apart.
//!
//! Through a proxy of the environment the proxy resolves names, and only addresses in URLs are judged here.
//!
//! [`Clients`] has the HTTP clients for all of this.

mod address;
mod clients;
mod private;
mod reach;
mod resolver;

pub use address::is_public;
pub use clients::Clients;
pub use private::{InvalidPrivateHost, PrivateHost};
pub use reach::{Closed, Reach, is_local_name, is_loopback, is_loopback_host, literal};
pub use resolver::{Lookup, Resolver, SystemLookup, Unresolved, is_closed};
