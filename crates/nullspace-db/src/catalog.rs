//! Templates, their names, and their artifacts.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{
    ArtifactId, BuildId, Caller, PrivateJson, Rootfs, Streams, Tag, TemplateId, TemplateName, TemplateRef, TenantId,
};
use serde_json::Value;

#[cfg(doc)]
use crate::DbError;
use crate::{CancelRequest, ClaimHash, NamespaceKind, NewClaim, Result, SourceType, text_enum::text_enum};

/// Resolves references to templates, and changes templates and their names: tags, aliases, visibility, claims.
#[async_trait]
pub trait Catalog: Send + Sync + 'static {
    /// Returns the built-in templates and the caller's own that have a usable artifact, sorted by canonical reference.
    async fn list_templates(&self, caller: &Caller) -> Result<Vec<Resolved>>;

    /// Returns the current target of the reference for the caller.
    async fn resolve(&self, caller: &Caller, reference: &TemplateRef) -> Result<Resolved>;

    /// Returns the template of the reference, even if it has no usable artifact.
    async fn standing(&self, caller: &Caller, reference: &TemplateRef) -> Result<Standing>;

    /// Returns an artifact by its id, for the service itself; also one that was deleted, while something keeps its files.
    async fn get_artifact(&self, artifact: ArtifactId) -> Result<Artifact>;

    /// Moves tags to the target of the reference. Only for the caller's own templates: a built-in one is a
    /// [`DbError::Conflict`], and another tenant's is [`DbError::NotFound`]. The same holds for all changes below.
    async fn assign_tags(
        &self,
        caller: &Caller,
        reference: &TemplateRef,
        tags: &[Tag],
        now: Timestamp,
    ) -> Result<Resolved>;

    /// Moves tags to a ready build with a usable artifact; else [`DbError::Conflict`].
    async fn promote_build(&self, caller: &Caller, build: BuildId, tags: &[Tag], now: Timestamp) -> Result<Resolved>;

    /// Removes a tag of the reference's template; [`DbError::NotFound`] when it does not have the tag.
    async fn remove_tag(&self, caller: &Caller, reference: &TemplateRef, tag: &Tag) -> Result<()>;

    /// Sets the template's visibility.
    async fn set_visibility(
        &self,
        caller: &Caller,
        reference: &TemplateRef,
        visibility: Visibility,
    ) -> Result<Standing>;

    /// Renames the template within its namespace, and keeps the old name as an alias. A name that a template, an alias or a
    /// claim has is a [`DbError::Conflict`].
    async fn rename_template(
        &self,
        caller: &Caller,
        reference: &TemplateRef,
        name: &TemplateName,
        now: Timestamp,
    ) -> Result<Standing>;

    /// Returns the template's aliases.
    async fn list_aliases(&self, caller: &Caller, reference: &TemplateRef) -> Result<Vec<Alias>>;

    /// Removes an alias. Its name is free afterwards.
    async fn remove_alias(&self, caller: &Caller, reference: &TemplateRef, alias: &TemplateName) -> Result<()>;

    /// Deletes the template of the reference, with its tags. Its artifacts become unusable, and its unfinished builds are
    /// cancelled (`cancel` as in [`request_cancel`](crate::Builds::request_cancel)). Running sandboxes stay. Built-ins are a
    /// [`DbError::Conflict`].
    async fn delete_template(
        &self,
        caller: &Caller,
        reference: &TemplateRef,
        cancel: CancelRequest,
        now: Timestamp,
    ) -> Result<()>;

    /// Claims a free name of the caller's namespace. Only a build with the claim's token may then use it.
    async fn reserve_name(&self, caller: &Caller, claim: NewClaim, now: Timestamp) -> Result<()>;

    /// Returns the name that a valid claim of the caller reserves.
    async fn claimed_name(&self, caller: &Caller, token: ClaimHash, now: Timestamp) -> Result<TemplateName>;

    /// Releases a claim.
    async fn release_name(&self, caller: &Caller, token: ClaimHash, now: Timestamp) -> Result<()>;
}

text_enum! {
    /// Visibility of a template.
    Visibility {
        /// Only its tenant can use it.
        Private = "private",
        /// Every caller that gives its canonical reference can use it.
        Public = "public",
    }
}

/// A logical template: a name in a namespace, whose tags point to builds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Identity.
    pub id: TemplateId,
    /// The tenant that owns it.
    pub tenant: TenantId,
    /// Slug of its namespace.
    pub namespace: String,
    /// Kind of its namespace.
    pub namespace_kind: NamespaceKind,
    /// Its name there.
    pub name: TemplateName,
    /// Its visibility.
    pub visibility: Visibility,
    /// Text for people.
    pub description: String,
    /// Time of creation.
    pub created_at: Timestamp,
}

impl Template {
    /// `namespace/name`.
    pub fn canonical_ref(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// True for a template that comes with the service. Tenants cannot change it.
    pub fn is_builtin(&self) -> bool {
        self.namespace_kind == NamespaceKind::System
    }
}

/// A tag and its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagTarget {
    /// The tag.
    pub tag: Tag,
    /// The build.
    pub build: BuildId,
    /// Time of the last move.
    pub moved_at: Timestamp,
}

/// An alias: an older name of a template, in the same namespace. It resolves, but takes no builds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// Slug of the namespace.
    pub namespace: String,
    /// The name.
    pub name: TemplateName,
    /// Time of the renaming.
    pub created_at: Timestamp,
}

/// A template, even if it has no usable artifact.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// The template.
    pub template: Template,
    /// All its tags, sorted.
    pub tags: Vec<TagTarget>,
    /// The artifact that represents it: the target of `default`, else its newest usable artifact.
    pub artifact: Option<Artifact>,
    /// Its newest build, which may have no artifact.
    pub newest: Option<(BuildId, ArtifactId)>,
}

/// The artifact of one build.
#[derive(Debug, Clone, PartialEq)]
pub struct Artifact {
    /// Identity.
    pub id: ArtifactId,
    /// Its name in the data folder, given when it was published.
    pub folder: String,
    /// The files of its snapshot. `None`: an older version stored them, as the folder of that name.
    pub streams: Option<Streams>,
    /// The tenant that owns it.
    pub tenant: TenantId,
    /// The build that made it.
    pub build: BuildId,
    /// The kind of that build's source.
    pub source_type: SourceType,
    /// The root image it boots from.
    pub rootfs: Rootfs,
    /// Disk size as the guest sees it, bytes.
    pub disk_bytes: u64,
    /// Growth of the host's store when it was published, bytes.
    pub stored_bytes: u64,
    /// Compatibility class of the snapshot.
    pub compatibility: Value,
    /// Summary of the snapshot.
    pub snapshot: Value,
    /// The runtime settings of sandboxes, with the values of environment variables.
    pub runtime: PrivateJson,
    /// The part of them that the API shows.
    pub runtime_defaults: Value,
    /// The image's metadata.
    pub oci_metadata: Option<Value>,
    /// Size of the build's machine.
    pub build_config: Value,
    /// Time of creation.
    pub created_at: Timestamp,
    /// Kept at least until then; for ever while a tag points to it.
    pub retention_expires_at: Option<Timestamp>,
}

/// The current target of a reference.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// The template.
    pub template: Template,
    /// All its tags, sorted.
    pub tags: Vec<TagTarget>,
    /// The target artifact.
    pub artifact: Artifact,
}
