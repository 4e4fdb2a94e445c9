//! Values that travel between the parts of the service: ids, the caller, references to templates, egress policies, names of
//! uploaded files and of stored files. They are parsed once, where they enter, and are the same types in the server, the engine, the
//! database and the data folder.
//!
//! This crate holds no logic beyond parsing and printing, and depends on no other crate of the workspace.

mod blob;
mod caller;
mod egress;
mod files;
mod id;
mod private_json;
mod reference;

pub use blob::{Blob, BlobId, InvalidBlobId};
pub use caller::Caller;
pub use egress::{
    EGRESS_BURST, EGRESS_KBIT, EGRESS_PPS, EgressPolicy, EgressRate, EgressReach, InvalidEgressNetwork,
    MAX_EGRESS_NETWORKS, parse_egress_network,
};
pub use files::{KnownFiles, Rootfs, Streams};
pub use id::{
    ArtifactId, BuildId, GrantId, InvalidId, KeyId, SandboxId, SnapshotId, SpareId, SshAccessId, StoreId, TemplateId,
    TenantId, TerminalId, WarmPoolId,
};
pub use private_json::PrivateJson;
pub use reference::{
    InvalidReference, MAX_NAME_CHARS, SYSTEM_NAMESPACE, Selector, Tag, TemplateName, TemplateRef, is_namespace_slug,
};
