//! Tenants and their namespaces.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{Caller, TenantId};

use crate::{Result, text_enum::text_enum};

/// Stores tenants and their namespaces.
#[async_trait]
pub trait Tenants: Send + Sync + 'static {
    /// Returns the tenant of this name. Creates it with its default namespace if it does not exist. The namespace's slug is
    /// made from the name, with a number if it is taken. For [`NamespaceKind::System`] it is
    /// [`SYSTEM_NAMESPACE`](nullspace_types::SYSTEM_NAMESPACE).
    async fn ensure_tenant(&self, name: &str, kind: NamespaceKind, now: Timestamp) -> Result<Tenant>;

    /// Returns all tenants, sorted by name.
    async fn list_tenants(&self) -> Result<Vec<Tenant>>;

    /// Returns a namespace that the caller can see: its own, the system's, the deployment's, or one with a public template.
    async fn get_namespace(&self, caller: &Caller, slug: &str) -> Result<Namespace>;
}

text_enum! {
    /// Kind of a namespace.
    NamespaceKind {
        /// Has the built-in templates. Every tenant sees them, and none can change them.
        System = "system",
        /// Belongs to one tenant.
        User = "user",
        /// Created by the operator of this deployment.
        Deployment = "deployment",
    }
}

/// A namespace of template names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// `^[a-z0-9]+(-[a-z0-9]+)*$`, unique in the deployment.
    pub slug: String,
    /// Its kind.
    pub kind: NamespaceKind,
    /// The tenant that may write to it.
    pub owner: TenantId,
}

/// A tenant and its default namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Identity.
    pub id: TenantId,
    /// The operator's name for it, unique.
    pub name: String,
    /// The namespace of its templates.
    pub namespace: Namespace,
    /// Time of creation.
    pub created_at: Timestamp,
}

impl Tenant {
    /// The caller of requests with this tenant's keys.
    pub fn caller(&self) -> Caller {
        Caller { tenant: self.id, namespace: self.namespace.slug.clone(), key: None, read_only: false }
    }
}
