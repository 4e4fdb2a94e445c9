//! Templates: what references mean, what a caller sees, and what goes when one is deleted.

use jiff::Timestamp;
use nullspace_api::{TemplateBuildLogKind, TemplateBuildLogLevel, TemplateInfo, TemplateRuntimeDefaults};
use nullspace_store::{
    Build, Caller, CancelRequest, NamespaceKind, Resolved, SYSTEM_NAMESPACE, Selector, StoreError, Tag, Template,
    TemplateId, TemplateName, TemplateRef,
};

use crate::error::{Error, Result};
use crate::logs::{LogIds, entry, to_store};
use crate::{Engine, Inner, builtin, records};

impl Engine {
    /// The built-in templates and the caller's own.
    pub async fn list_templates(&self, caller: &Caller) -> Result<Vec<TemplateInfo>> {
        let templates = self.inner.metadata.list_templates(caller).await?;
        Ok(templates.iter().map(records::template).collect::<std::result::Result<_, _>>()?)
    }

    /// One template, by id or by any reference that the caller can see.
    pub async fn get_template(&self, caller: &Caller, reference: &str) -> Result<TemplateInfo> {
        Ok(records::template(&self.inner.resolve(caller, reference).await?)?)
    }

    /// Deletes a template of the caller's with all its tags. Running sandboxes stay; running builds are cancelled.
    pub async fn delete_template(&self, caller: &Caller, reference: &str) -> Result<()> {
        let parsed = parse(reference)?;
        let now = Timestamp::now();
        let resolved = self.inner.resolve(caller, reference).await?;
        if resolved.template.is_builtin() {
            return Err(Error::invalid(format!("{reference} is built in and cannot be deleted")));
        }
        // One entry for every log that ends here; whoever reads it puts the build's own ids into it.
        let ids = LogIds { build: resolved.artifact.build, artifact: resolved.artifact.id };
        let last = entry(
            ids,
            TemplateBuildLogKind::Cancelled,
            TemplateBuildLogLevel::Warn,
            "Build cancelled: its template was deleted",
        );
        let cancel = CancelRequest {
            by: caller.namespace.clone(),
            reason: Some("the template was deleted".to_owned()),
            entry: to_store(&last, now)?,
        };
        let missing = || Error::template_not_found(reference);
        self.inner
            .metadata
            .delete_template(caller, &parsed, cancel, now)
            .await
            .map_err(|error| Error::store(error, missing))?;
        self.inner.collect.notify_one();
        Ok(())
    }
}

fn parse(reference: &str) -> Result<TemplateRef> {
    reference.parse().map_err(|_| Error::template_not_found(reference))
}

impl Inner {
    /// What a reference means to the caller now. `latest` means `default` where no build has the tag `latest`: the
    /// published client writes `nullspace/x:latest` for a bare `x`.
    pub(crate) async fn resolve(&self, caller: &Caller, reference: &str) -> Result<Resolved> {
        let parsed = parse(reference)?;
        let base = matches!(&parsed, TemplateRef::Named { namespace, name, .. }
            if name.as_str() == builtin::BASE && namespace.as_deref().is_none_or(|slug| slug == SYSTEM_NAMESPACE));
        let missing = || if base { self.base.missing() } else { Error::template_not_found(reference) };
        match self.metadata.resolve(caller, &parsed).await {
            Err(StoreError::NotFound) => {}
            other => return other.map_err(|error| Error::store(error, missing)),
        }
        match parsed {
            TemplateRef::Named { namespace, name, selector: Some(Selector::Tag(tag)) } if tag.as_str() == "latest" => {
                let bare = TemplateRef::Named { namespace, name, selector: None };
                self.metadata.resolve(caller, &bare).await.map_err(|error| Error::store(error, missing))
            }
            _ => Err(missing()),
        }
    }

    /// The `TemplateInfo` that a build ends with: the template as it will be once its tags have moved.
    pub(crate) async fn ready_info(
        &self,
        build: &Build,
        runtime_defaults: &TemplateRuntimeDefaults,
    ) -> std::result::Result<TemplateInfo, StoreError> {
        let caller = Caller { tenant: build.tenant, namespace: build.namespace.clone(), key: None };
        let mut tags: Vec<String> = build.tags.iter().map(Tag::to_string).collect();
        // The bare name, or any tag of this build: whichever resolves tells the tags that exist already.
        let named = |selector| TemplateRef::Named {
            namespace: Some(build.namespace.clone()),
            name: build.name.clone(),
            selector,
        };
        for selector in std::iter::once(None).chain(build.tags.iter().cloned().map(|tag| Some(Selector::Tag(tag)))) {
            match self.metadata.resolve(&caller, &named(selector)).await {
                Ok(resolved) => {
                    tags.extend(resolved.tags.iter().map(|target| target.tag.to_string()));
                    let mut template = resolved.template;
                    if let Some(description) = &build.description {
                        template.description.clone_from(description);
                    }
                    let id = build.artifact_id.to_string();
                    return Ok(records::template_info(&template, id, tags, Some(runtime_defaults.clone())));
                }
                Err(StoreError::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        let template = first_template(build);
        Ok(records::template_info(&template, build.artifact_id.to_string(), tags, Some(runtime_defaults.clone())))
    }
}

/// The template of a build whose name has no artifact yet.
fn first_template(build: &Build) -> Template {
    let system = build.namespace == nullspace_store::SYSTEM_NAMESPACE;
    Template {
        id: build.template,
        tenant: build.tenant,
        namespace: build.namespace.clone(),
        namespace_kind: if system { NamespaceKind::System } else { NamespaceKind::User },
        name: build.name.clone(),
        visibility: build.visibility,
        description: build.description.clone().unwrap_or_default(),
        created_at: build.created_at,
    }
}

/// A name for a template whose request gave none.
pub(crate) fn generated_name(template: TemplateId) -> Result<TemplateName> {
    let id = template.uuid().as_simple().to_string();
    let name = format!("template-{}", id.get(20..).unwrap_or(&id));
    name.parse().map_err(|error| Error::internal("generate a template name", &error))
}
