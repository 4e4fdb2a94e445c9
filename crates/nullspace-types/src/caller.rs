//! Who asks.

use crate::{KeyId, TenantId};

/// Who asks. Every method that reads or writes a tenant's things takes it, so that none can forget to ask whose they are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Caller {
    /// The tenant.
    pub tenant: TenantId,
    /// Slug of its default namespace.
    pub namespace: String,
    /// The key it came with; `None` for the service itself.
    pub key: Option<KeyId>,
}
