//! The trait `Catalog`, joined from three modules: templates, names and claims.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{ArtifactId, BuildId, Caller, Tag, TemplateName, TemplateRef};

use super::{Store, claims, names, templates};
use crate::{
    Alias, Artifact, CancelRequest, Catalog, ClaimHash, DbError, NewClaim, Resolved, Result, Standing, Visibility,
};

#[async_trait]
impl Catalog for Store {
    async fn list_templates(&self, caller: &Caller) -> Result<Vec<Resolved>> {
        templates::list(self, caller).await
    }

    async fn resolve(&self, caller: &Caller, reference: &TemplateRef) -> Result<Resolved> {
        templates::resolve(self, caller, reference).await
    }

    async fn standing(&self, caller: &Caller, reference: &TemplateRef) -> Result<Standing> {
        names::standing(self, caller, reference).await
    }

    async fn get_artifact(&self, artifact: ArtifactId) -> Result<Artifact> {
        let mut tx = self.read().await?;
        templates::stored_artifact(&mut tx, artifact).await?.ok_or(DbError::NotFound)
    }

    async fn assign_tags(
        &self,
        caller: &Caller,
        reference: &TemplateRef,
        tags: &[Tag],
        now: Timestamp,
    ) -> Result<Resolved> {
        names::assign_tags(self, caller, reference, tags, now).await
    }

    async fn promote_build(&self, caller: &Caller, build: BuildId, tags: &[Tag], now: Timestamp) -> Result<Resolved> {
        names::promote(self, caller, build, tags, now).await
    }

    async fn remove_tag(&self, caller: &Caller, reference: &TemplateRef, tag: &Tag) -> Result<()> {
        names::remove_tag(self, caller, reference, tag).await
    }

    async fn set_visibility(
        &self,
        caller: &Caller,
        reference: &TemplateRef,
        visibility: Visibility,
    ) -> Result<Standing> {
        names::set_visibility(self, caller, reference, visibility).await
    }

    async fn rename_template(
        &self,
        caller: &Caller,
        reference: &TemplateRef,
        name: &TemplateName,
        now: Timestamp,
    ) -> Result<Standing> {
        names::rename(self, caller, reference, name, now).await
    }

    async fn list_aliases(&self, caller: &Caller, reference: &TemplateRef) -> Result<Vec<Alias>> {
        names::aliases(self, caller, reference).await
    }

    async fn remove_alias(&self, caller: &Caller, reference: &TemplateRef, alias: &TemplateName) -> Result<()> {
        names::remove_alias(self, caller, reference, alias).await
    }

    async fn delete_template(
        &self,
        caller: &Caller,
        reference: &TemplateRef,
        cancel: CancelRequest,
        now: Timestamp,
    ) -> Result<()> {
        templates::delete(self, caller, reference, cancel, now).await
    }

    async fn reserve_name(&self, caller: &Caller, claim: NewClaim, now: Timestamp) -> Result<()> {
        claims::reserve(self, caller, claim, now).await
    }

    async fn claimed_name(&self, caller: &Caller, token: ClaimHash, now: Timestamp) -> Result<TemplateName> {
        claims::claimed_name(self, caller, token, now).await
    }

    async fn release_name(&self, caller: &Caller, token: ClaimHash, now: Timestamp) -> Result<()> {
        claims::release(self, caller, token, now).await
    }
}
