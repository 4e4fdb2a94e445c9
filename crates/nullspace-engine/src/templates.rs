//! Templates: what references mean, what a caller sees, and what goes when one is deleted.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_api::{TemplateBuildLogKind, TemplateBuildLogLevel, TemplateInfo, TemplateRuntimeDefaults};
use nullspace_service::Templates;
use nullspace_store::{
    ArtifactId, Build, BuildId, Caller, CancelRequest, Resolved, SYSTEM_NAMESPACE, Selector, StoreError, Tag,
    TemplateId, TemplateName, TemplateRef,
};

use crate::error::{Error, Result, Stored, internal};
use crate::logs::{LogIds, entry, to_store};
use crate::{Engine, Inner, builtin, records};

#[async_trait]
impl Templates for Engine {
    async fn list_templates(&self, caller: &Caller) -> Result<Vec<TemplateInfo>> {
        let templates = self.inner.metadata.list_templates(caller).await.stored()?;
        templates.iter().map(records::template).collect::<std::result::Result<_, _>>().stored()
    }

    async fn get_template(&self, caller: &Caller, reference: &str) -> Result<TemplateInfo> {
        records::template(&self.inner.resolve(caller, reference).await?).stored()
    }

    async fn delete_template(&self, caller: &Caller, reference: &str) -> Result<()> {
        let parsed = parse(reference)?;
        let now = Timestamp::now();
        let standing = self.inner.standing(caller, reference).await?;
        if standing.template.is_builtin() {
            return Err(Error::invalid(format!("{reference} is built in and cannot be deleted")));
        }
        // One entry for every log that ends here; whoever reads it puts the build's own ids into it.
        let (build, artifact) = standing.newest.unwrap_or_else(|| (BuildId::new(), ArtifactId::new()));
        let ids = LogIds { build, artifact };
        let last = entry(
            ids,
            TemplateBuildLogKind::Cancelled,
            TemplateBuildLogLevel::Warn,
            "Build cancelled: its template was deleted",
        );
        let cancel = CancelRequest {
            by: caller.namespace.clone(),
            reason: Some("the template was deleted".to_owned()),
            entry: to_store(&last, now).stored()?,
        };
        let missing = || Error::template_not_found(reference);
        self.inner.metadata.delete_template(caller, &parsed, cancel, now).await.or_missing(missing)?;
        self.inner.collect.notify_one();
        Ok(())
    }
}

/// A reference from a path: what is none names nothing.
pub(crate) fn parse(reference: &str) -> Result<TemplateRef> {
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
            other => return other.or_missing(missing),
        }
        match parsed {
            TemplateRef::Named { namespace, name, selector: Some(Selector::Tag(tag)) } if tag.as_str() == "latest" => {
                let bare = TemplateRef::Named { namespace, name, selector: None };
                self.metadata.resolve(caller, &bare).await.or_missing(missing)
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
        let tags: Vec<String> = build.tags.iter().map(Tag::to_string).collect();
        let mut template = self.metadata.standing(&caller, &TemplateRef::Artifact(build.artifact_id)).await?.template;
        if let Some(description) = &build.description {
            template.description.clone_from(description);
        }
        Ok(records::template_info(&template, build.artifact_id.to_string(), tags, Some(runtime_defaults.clone())))
    }
}

/// A name for a template whose request gave none.
pub(crate) fn generated_name(template: TemplateId) -> Result<TemplateName> {
    let id = template.uuid().as_simple().to_string();
    let name = format!("template-{}", id.get(20..).unwrap_or(&id));
    name.parse().map_err(|error| internal("generate a template name", &error))
}
