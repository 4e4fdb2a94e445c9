//! Templates and their names.

use async_trait::async_trait;
use nullspace_api::{
    TemplateAliasInfo, TemplateInfo, TemplateNameClaim, TemplateNamespaceInfo, TemplateTagInfo, TemplateVisibility,
};

use crate::{Caller, Result, Warned};

/// Templates.
#[async_trait]
pub trait Templates: Send + Sync + 'static {
    /// Returns the built-in templates and the caller's own.
    async fn list_templates(&self, caller: &Caller) -> Result<Vec<TemplateInfo>>;

    /// Returns one template, by id or by any reference that the caller can see.
    async fn get_template(&self, caller: &Caller, reference: &str) -> Result<TemplateInfo>;

    /// Deletes a template of the caller with all its tags. Running sandboxes stay. Running builds are cancelled.
    async fn delete_template(&self, caller: &Caller, reference: &str) -> Result<()>;
}

/// Names of templates: tags, aliases, renames, visibility, claims.
#[async_trait]
pub trait Names: Send + Sync + 'static {
    /// Returns the template's tags, sorted by name.
    async fn template_tags(&self, caller: &Caller, reference: &str) -> Result<Vec<TemplateTagInfo>>;

    /// Moves tags to the reference's artifact.
    async fn assign_tags(&self, caller: &Caller, reference: &str, tags: Vec<String>) -> Result<Warned<TemplateInfo>>;

    /// Removes a tag.
    async fn remove_tag(&self, caller: &Caller, reference: &str, tag: &str) -> Result<()>;

    /// Returns the template's aliases.
    async fn template_aliases(&self, caller: &Caller, reference: &str) -> Result<Vec<TemplateAliasInfo>>;

    /// Removes an alias, given with or without its namespace.
    async fn remove_alias(&self, caller: &Caller, reference: &str, alias: &str) -> Result<()>;

    /// Renames a template. The old name becomes an alias.
    async fn rename_template(&self, caller: &Caller, reference: &str, new_name: &str) -> Result<TemplateInfo>;

    /// Sets a template's visibility. Warns of data that becomes public.
    async fn set_visibility(
        &self,
        caller: &Caller,
        reference: &str,
        visibility: TemplateVisibility,
    ) -> Result<Warned<TemplateInfo>>;

    /// Claims a name of the caller's namespace for an hour. Only the answer has the claim's token.
    async fn reserve_name(&self, caller: &Caller, reference: &str) -> Result<TemplateNameClaim>;

    /// Releases a claim.
    async fn release_name(&self, caller: &Caller, token: &str) -> Result<()>;

    /// Returns a namespace that the caller can see.
    async fn namespace(&self, caller: &Caller, slug: &str) -> Result<TemplateNamespaceInfo>;
}
