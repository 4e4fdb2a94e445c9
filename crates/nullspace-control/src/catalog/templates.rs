//! Templates: references are resolved, shown to callers that may see them, and deleted.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_api::{TemplateBuildLogKind, TemplateBuildLogLevel, TemplateInfo, TemplateRuntimeDefaults};
use nullspace_db::{Artifact, Build, CancelRequest, DbError, Resolved};
use nullspace_definition::runtime::Runtime;
use nullspace_host_interface::{LogIds, Snapshot, entry};
use nullspace_service::Templates;
use nullspace_types::{
    ArtifactId, BuildId, Caller, SYSTEM_NAMESPACE, Selector, Tag, TemplateId, TemplateName, TemplateRef,
};

use super::{base, wire};
use crate::builds::logs::to_store;
use crate::error::{Error, Result, Stored, internal};
use crate::{Control, Inner};

#[async_trait]
impl Templates for Control {
    async fn list_templates(&self, caller: &Caller) -> Result<Vec<TemplateInfo>> {
        let templates = self.inner.db.list_templates(caller).await.stored()?;
        templates.iter().map(wire::template).collect::<std::result::Result<_, _>>().stored()
    }

    async fn get_template(&self, caller: &Caller, reference: &str) -> Result<TemplateInfo> {
        wire::template(&self.inner.resolve(caller, reference).await?).stored()
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
        self.inner.db.delete_template(caller, &parsed, cancel, now).await.or_missing(missing)?;
        self.inner.collect.notify_one();
        Ok(())
    }
}

/// Parses a reference of a path. An invalid one is answered as not found.
pub(crate) fn parse(reference: &str) -> Result<TemplateRef> {
    reference.parse().map_err(|_| Error::template_not_found(reference))
}

impl Inner {
    /// Resolves a reference for the caller. `latest` means `default` where no build has the tag `latest`, because the
    /// published client writes `nullspace/x:latest` for a bare `x`.
    pub(crate) async fn resolve(&self, caller: &Caller, reference: &str) -> Result<Resolved> {
        let parsed = parse(reference)?;
        let base = matches!(&parsed, TemplateRef::Named { namespace, name, .. }
            if name.as_str() == base::BASE && namespace.as_deref().is_none_or(|slug| slug == SYSTEM_NAMESPACE));
        let missing = || if base { self.base.missing() } else { Error::template_not_found(reference) };
        match self.db.resolve(caller, &parsed).await {
            Err(DbError::NotFound) => {}
            other => return other.or_missing(missing),
        }
        match parsed {
            TemplateRef::Named { namespace, name, selector: Some(Selector::Tag(tag)) } if tag.as_str() == "latest" => {
                let bare = TemplateRef::Named { namespace, name, selector: None };
                self.db.resolve(caller, &bare).await.or_missing(missing)
            }
            _ => Err(missing()),
        }
    }

    /// The `TemplateInfo` of a finished build: the template as it will be once its tags have moved.
    pub(crate) async fn ready_info(
        &self,
        build: &Build,
        runtime_defaults: &TemplateRuntimeDefaults,
    ) -> std::result::Result<TemplateInfo, DbError> {
        let caller = Caller { tenant: build.tenant, namespace: build.namespace.clone(), key: None, read_only: false };
        let tags: Vec<String> = build.tags.iter().map(Tag::to_string).collect();
        let mut template = self.db.standing(&caller, &TemplateRef::Artifact(build.artifact_id)).await?.template;
        if let Some(description) = &build.description {
            template.description.clone_from(description);
        }
        Ok(wire::template_info(&template, build.artifact_id.to_string(), tags, Some(runtime_defaults.clone())))
    }
}

/// What a host needs to resume the snapshot of a template.
pub(crate) fn template_snapshot(artifact: Artifact) -> Result<Snapshot> {
    let runtime: Runtime = wire::column("artifacts.runtime", &artifact.runtime.0).stored()?;
    Ok(Snapshot {
        artifact: artifact.id,
        folder: artifact.folder,
        streams: artifact.streams,
        rootfs: artifact.rootfs,
        summary: artifact.snapshot,
        runtime,
        held: None,
    })
}

/// A name for a template whose request gave none.
pub(crate) fn generated_name(template: TemplateId) -> Result<TemplateName> {
    let id = template.uuid().as_simple().to_string();
    let name = format!("template-{}", id.get(20..).unwrap_or(&id));
    name.parse().map_err(|error| internal("generate a template name", &error))
}
