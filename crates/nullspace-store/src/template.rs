//! Templates and the artifacts they point to.

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    ArtifactId, BuildId, NamespaceKind, PrivateJson, Rootfs, Tag, TemplateId, TemplateName, TenantId,
    text_enum::text_enum,
};

text_enum! {
    /// Who can use a template.
    Visibility {
        /// Its tenant only.
        Private = "private",
        /// Everybody who gives its canonical reference.
        Public = "public",
    }
}

/// A logical template: a name in a namespace, whose tags point to builds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Identity.
    pub id: TemplateId,
    /// Whose.
    pub tenant: TenantId,
    /// Slug of its namespace.
    pub namespace: String,
    /// Kind of its namespace.
    pub namespace_kind: NamespaceKind,
    /// Its name there.
    pub name: TemplateName,
    /// Who can use it.
    pub visibility: Visibility,
    /// For people.
    pub description: String,
    /// When it was made.
    pub created_at: Timestamp,
}

impl Template {
    /// `namespace/name`.
    pub fn canonical_ref(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Comes with the service and cannot be changed by tenants.
    pub fn is_builtin(&self) -> bool {
        self.namespace_kind == NamespaceKind::System
    }
}

/// Where a tag points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagTarget {
    /// The tag.
    pub tag: Tag,
    /// The build.
    pub build: BuildId,
    /// When it began to point there.
    pub moved_at: Timestamp,
}

/// An older name of a template, in the same namespace. It resolves, and builds do not go there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// Slug of the namespace.
    pub namespace: String,
    /// The name.
    pub name: TemplateName,
    /// When the template was renamed.
    pub created_at: Timestamp,
}

/// A template as a whole, whether or not there is anything to use in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// The template.
    pub template: Template,
    /// All its tags, sorted.
    pub tags: Vec<TagTarget>,
    /// What stands for it: where `default` points, else its newest usable artifact.
    pub artifact: Option<Artifact>,
    /// Its newest build, which may have made nothing.
    pub newest: Option<(BuildId, ArtifactId)>,
}

/// What one build made.
#[derive(Debug, Clone, PartialEq)]
pub struct Artifact {
    /// Identity.
    pub id: ArtifactId,
    /// Name of its folder under `artifacts/`, from
    /// [`ArtifactStore::publish_artifact`](crate::ArtifactStore::publish_artifact).
    pub folder: String,
    /// Whose.
    pub tenant: TenantId,
    /// The build that made it.
    pub build: BuildId,
    /// The root image it boots from.
    pub rootfs: Rootfs,
    /// Disk size as the guest sees it, bytes.
    pub disk_bytes: u64,
    /// What its folder takes on the host's disk, bytes.
    pub stored_bytes: u64,
    /// Where it can be restored.
    pub compatibility: Value,
    /// Summary of the snapshot.
    pub snapshot: Value,
    /// What sandboxes need at start, with the values of runtime environment variables.
    pub runtime: PrivateJson,
    /// What the API shows of it.
    pub runtime_defaults: Value,
    /// What the image said.
    pub oci_metadata: Option<Value>,
    /// The build's resources.
    pub build_config: Value,
    /// When it was made.
    pub created_at: Timestamp,
    /// Kept at least until then; for ever while a tag points to it.
    pub retention_expires_at: Option<Timestamp>,
}

/// What a reference means right now.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// The template.
    pub template: Template,
    /// All its tags, sorted.
    pub tags: Vec<TagTarget>,
    /// The artifact meant.
    pub artifact: Artifact,
}
