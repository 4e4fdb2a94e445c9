//! Ids, and who asks. They are parsed once, where they enter, and are the same types in the server, the engine and the
//! store.
//!
//! This crate holds no logic beyond parsing and printing, and depends on no other crate of the workspace.

mod caller;
mod id;

pub use caller::Caller;
pub use id::{ArtifactId, BuildId, InvalidId, KeyId, SandboxId, TemplateId, TenantId};
