//! Lifecycle events of sandboxes and snapshots: recorded, listed, followed, and delivered to webhooks.
//!
//! ```text
//!   sandboxes/ ── record ──> queue (at most 10,000) ── write ──> rows of events and deliveries ──> list
//!                 never fails, never waits                 │ refused: again,      │
//!                                                          │ later, counted       ├──> follow    every follower, bounded
//!                                                          v                      └──> deliver   webhooks, signed, with retries
//! ```
//! An event never changes what it tells of. [`State::record`] gives it the next id and queues it. One task writes the queue to the
//! database, so ids ascend in the order of the writes. An event of the last moments before a kill of the service is lost with the
//! queue.

mod counts;
mod deliver;
mod follow;
mod list;
mod record;
mod send;
#[cfg(test)]
mod tests;
mod webhooks;
mod wire;
mod write;

pub(crate) use self::deliver::deliver;
pub(crate) use self::record::{Event, State};
pub use self::send::{WebhookSender, WebhookSetup};
pub(crate) use self::write::write;
