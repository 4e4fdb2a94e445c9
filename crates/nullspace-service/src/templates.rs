//! Templates and what they are called.

use async_trait::async_trait;
use nullspace_api::{
    TemplateAliasInfo, TemplateInfo, TemplateNameClaim, TemplateNamespaceInfo, TemplateTagInfo, TemplateVisibility,
};

use crate::{Caller, Result, Warned};

/// Templates.
#[async_trait]
pub trait Templates: Send + Sync + 'static {
    /// The built-in templates and the caller's own.
    async fn list_templates(&self, caller: &Caller) -> Result<Vec<TemplateInfo>>;

    /// One template, by id or by any reference that the caller can see.
    async fn get_template(&self, caller: &Caller, reference: &str) -> Result<TemplateInfo>;

    /// Deletes a template of the caller's with all its tags. Running sandboxes stay; running builds are cancelled.
    async fn delete_template(&self, caller: &Caller, reference: &str) -> Result<()>;
}

/// What templates are called: tags, aliases, new names, who sees them, names held for later.
#[async_trait]
pub trait Names: Send + Sync + 'static {
    /// The template's tags, by name.
    async fn template_tags(&self, caller: &Caller, reference: &str) -> Result<Vec<TemplateTagInfo>>;

    /// Makes tags point to what the reference means.
    async fn assign_tags(&self, caller: &Caller, reference: &str, tags: Vec<String>) -> Result<Warned<TemplateInfo>>;

    /// Removes a tag.
    async fn remove_tag(&self, caller: &Caller, reference: &str, tag: &str) -> Result<()>;

    /// The template's older names.
    async fn template_aliases(&self, caller: &Caller, reference: &str) -> Result<Vec<TemplateAliasInfo>>;

    /// Removes an older name, given with or without its namespace.
    async fn remove_alias(&self, caller: &Caller, reference: &str, alias: &str) -> Result<()>;

    /// Gives a template another name; the old one stays as an alias.
    async fn rename_template(&self, caller: &Caller, reference: &str, new_name: &str) -> Result<TemplateInfo>;

    /// Says who can use a template. Warns of what becomes everybody's.
    async fn set_visibility(
        &self,
        caller: &Caller,
        reference: &str,
        visibility: TemplateVisibility,
    ) -> Result<Warned<TemplateInfo>>;

    /// Holds a name of the caller's namespace for an hour. The token is in the answer only.
    async fn reserve_name(&self, caller: &Caller, reference: &str) -> Result<TemplateNameClaim>;

    /// Gives a reserved name back.
    async fn release_name(&self, caller: &Caller, token: &str) -> Result<()>;

    /// A namespace that the caller can see.
    async fn namespace(&self, caller: &Caller, slug: &str) -> Result<TemplateNamespaceInfo>;
}
