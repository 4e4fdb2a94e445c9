//! What every implementation of [`Metadata`](nullspace_store::Metadata) promises. Nothing here names a database except
//! [`fixture`].

mod cancel;
mod collection;
mod finish;
mod fixture;
mod model;
mod queue;
mod sandboxes;
mod templates;
mod tenants;
