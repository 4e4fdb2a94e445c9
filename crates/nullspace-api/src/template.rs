//! Templates, and everything about their names.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{TemplateRuntimeDefaults, Time};

/// A template, as sandboxes are made from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateInfo {
    /// `tmpl_…`: the artifact that the default tag, or the reference that was asked for, points to.
    pub id: String,
    /// Its name in its namespace.
    pub name: String,
    /// Purpose of the template.
    pub description: String,
    /// True for templates that come with the service.
    pub builtin: bool,
    /// `namespace/name:tag`.
    pub canonical_ref: String,
    /// Its namespace.
    pub namespace_slug: String,
    /// Visibility of the template.
    pub visibility: TemplateVisibility,
    /// Its tags, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The tag that the bare name means: `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_tag: Option<String>,
    /// Runtime defaults of its sandboxes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime_defaults: Option<TemplateRuntimeDefaults>,
}

/// Visibility of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TemplateVisibility {
    /// Its tenant.
    Private,
    /// Everyone, by its canonical reference.
    Public,
}

/// A tag and what it points to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateTagInfo {
    /// The tag.
    pub tag: String,
    /// `tb_…`.
    pub build_id: String,
    /// When it was set to this build.
    pub created_at: Time,
}

/// An older name that still resolves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateAliasInfo {
    /// `namespace/name`.
    pub alias_ref: String,
    /// When the template was renamed.
    pub created_at: Time,
}

/// A reserved name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateNameClaim {
    /// Shown by the build that may use the name.
    pub claim_token: String,
    /// `namespace/name`.
    pub canonical_ref: String,
    /// When it lapses.
    pub expires_at: Time,
}

/// A namespace of template names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateNamespaceInfo {
    /// Its name.
    pub slug: String,
    /// Kind of the namespace.
    pub kind: TemplateNamespaceKind,
    /// True for the caller's own.
    pub is_default: bool,
}

/// Kinds of namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TemplateNamespaceKind {
    /// The operator's.
    Deployment,
    /// The service's: built-in templates.
    System,
    /// A tenant's.
    User,
}

/// Set tags.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AssignTagsRequest {
    /// The tags; not empty.
    pub tags: Vec<String>,
}

/// Give a template another name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RenameTemplateRequest {
    /// The name.
    pub new_name: String,
}

/// Reserve a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReserveTemplateNameRequest {
    /// `name` or `namespace/name`.
    pub template_ref: String,
}

/// Change a template's visibility.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UpdateTemplateVisibilityRequest {
    /// New visibility.
    pub visibility: TemplateVisibility,
}
