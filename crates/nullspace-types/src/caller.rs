//! The caller of an operation.

use crate::{KeyId, TenantId};

/// The caller of an operation. Every method that reads or writes a tenant's data takes it, so that the check of the owner
/// cannot be forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Caller {
    /// The tenant.
    pub tenant: TenantId,
    /// Slug of its default namespace.
    pub namespace: String,
    /// The key of its request; `None` for the service itself.
    pub key: Option<KeyId>,
    /// True when its key may only read: the server refuses all other requests.
    pub read_only: bool,
}
