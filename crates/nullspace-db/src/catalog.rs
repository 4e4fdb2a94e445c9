//! Templates, what their names lead to, and the artifacts they point to.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{
    ArtifactId, BuildId, Caller, PrivateJson, Rootfs, Tag, TemplateId, TemplateName, TemplateRef, TenantId,
};
use serde_json::Value;

#[cfg(doc)]
use crate::DbError;
use crate::{CancelRequest, ClaimHash, NamespaceKind, NewClaim, Result, text_enum::text_enum};

/// Resolves references to templates, and changes templates and their names: tags, aliases, visibility, claims.
#[async_trait]
pub trait Catalog: Send + Sync + 'static {
    /// The built-ins and the caller's own that have something to use, by canonical reference.
    async fn list_templates(&self, caller: &Caller) -> Result<Vec<Resolved>>;

    /// What the reference means to the caller right now.
    async fn resolve(&self, caller: &Caller, reference: &TemplateRef) -> Result<Resolved>;

    /// The template that the reference is about, whether or not there is anything to use in it.
    async fn standing(&self, caller: &Caller, reference: &TemplateRef) -> Result<Standing>;

    /// An artifact by its id, for the service itself.
    async fn get_artifact(&self, artifact: ArtifactId) -> Result<Artifact>;

    /// Makes tags point to what the reference means. Of the caller's own templates only: a built-in is a
    /// [`DbError::Conflict`], another tenant's is [`DbError::NotFound`]; so with all changes below.
    async fn assign_tags(
        &self,
        caller: &Caller,
        reference: &TemplateRef,
        tags: &[Tag],
        now: Timestamp,
    ) -> Result<Resolved>;

    /// Makes tags point to a ready build whose artifact can be used; else [`DbError::Conflict`].
    async fn promote_build(&self, caller: &Caller, build: BuildId, tags: &[Tag], now: Timestamp) -> Result<Resolved>;

    /// Removes a tag of the template that the reference is about; [`DbError::NotFound`] when it has none of that name.
    async fn remove_tag(&self, caller: &Caller, reference: &TemplateRef, tag: &Tag) -> Result<()>;

    /// Says who can use the template.
    async fn set_visibility(
        &self,
        caller: &Caller,
        reference: &TemplateRef,
        visibility: Visibility,
    ) -> Result<Standing>;

    /// Gives the template another name in its namespace and keeps the old one as an alias. A name that a template, an
    /// alias or a claim has is a [`DbError::Conflict`].
    async fn rename_template(
        &self,
        caller: &Caller,
        reference: &TemplateRef,
        name: &TemplateName,
        now: Timestamp,
    ) -> Result<Standing>;

    /// The template's older names.
    async fn list_aliases(&self, caller: &Caller, reference: &TemplateRef) -> Result<Vec<Alias>>;

    /// Removes one of them, whose name is then free.
    async fn remove_alias(&self, caller: &Caller, reference: &TemplateRef, alias: &TemplateName) -> Result<()>;

    /// Deletes the template that the reference leads to, with its tags. Its artifacts can be used no more, its
    /// unfinished builds are cancelled (`cancel` as in [`request_cancel`](crate::Builds::request_cancel)); running sandboxes stay.
    /// Built-ins are a [`DbError::Conflict`].
    async fn delete_template(
        &self,
        caller: &Caller,
        reference: &TemplateRef,
        cancel: CancelRequest,
        now: Timestamp,
    ) -> Result<()>;

    /// Holds a name of the caller's namespace that is nobody's: only a build with the claim's token may use it.
    async fn reserve_name(&self, caller: &Caller, claim: NewClaim, now: Timestamp) -> Result<()>;

    /// The name that a live claim of the caller holds.
    async fn claimed_name(&self, caller: &Caller, token: ClaimHash, now: Timestamp) -> Result<TemplateName>;

    /// Gives a claim back.
    async fn release_name(&self, caller: &Caller, token: ClaimHash, now: Timestamp) -> Result<()>;
}

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
    /// Name of its folder under `artifacts/` of the data folder, allotted when it was published.
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
