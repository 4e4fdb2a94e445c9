//! Finished builds: a template's history, retry, and promotion, which moves tags to an earlier build's artifact.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_api::{
    ErrorResponseCode, PromoteTemplateBuildRequest, RequestSecrets, RetryTemplateBuildRequest, TemplateBuild,
    TemplateBuildBackend, TemplateBuildListResponse, TemplateBuildSourceType, TemplateBuildStatus, TemplateInfo,
};
use nullspace_db::{BuildBackend, BuildFilter, BuildStatus, DbError, NewBuild, SourceType};
use nullspace_definition::{Definition, Source};
use nullspace_service::{BuildHistory, BuildQuery, Warned};
use nullspace_types::{ArtifactId, BuildId, Caller};

use super::accept::wanted_blobs;
use super::follow::parse;
use crate::Control;
use crate::catalog::names::parse_tags;
use crate::catalog::publication::{self, Published};
use crate::catalog::wire;
use crate::error::{Error, Result, Stored};

/// Longest page, and the default page.
const MAX_PAGE: u32 = 100;
const PAGE: u32 = 50;

#[async_trait]
impl BuildHistory for Control {
    async fn template_builds(
        &self,
        caller: &Caller,
        reference: &str,
        query: BuildQuery,
    ) -> Result<TemplateBuildListResponse> {
        let limit = query.limit.unwrap_or(PAGE);
        if !(1..=MAX_PAGE).contains(&limit) {
            return Err(Error::invalid(format!("limit is {limit}: it must be 1 to {MAX_PAGE}")));
        }
        let after = match &query.cursor {
            None => None,
            Some(cursor) => Some(cursor.parse::<BuildId>().map_err(|_| {
                Error::invalid("cursor is not one that this service has given: take next_cursor of the page before")
            })?),
        };
        let standing = self.inner.standing(caller, reference).await?;
        let filter = BuildFilter {
            template: Some(standing.template.id),
            status: query.status.map(|status| match status {
                TemplateBuildStatus::Building => BuildStatus::Building,
                TemplateBuildStatus::Cancelled => BuildStatus::Cancelled,
                TemplateBuildStatus::Error => BuildStatus::Error,
                TemplateBuildStatus::Ready => BuildStatus::Ready,
                TemplateBuildStatus::Waiting => BuildStatus::Waiting,
            }),
            backend: query.backend.map(|backend| match backend {
                TemplateBuildBackend::Buildkit => BuildBackend::Buildkit,
                TemplateBuildBackend::Native => BuildBackend::Native,
            }),
            source_type: query.source_type.map(|source| match source {
                TemplateBuildSourceType::Declarative => SourceType::Declarative,
                TemplateBuildSourceType::Dockerfile => SourceType::Dockerfile,
                TemplateBuildSourceType::OciImport => SourceType::OciImport,
                TemplateBuildSourceType::TemplateBase => SourceType::TemplateBase,
            }),
            after,
            limit,
        };
        let page = self.inner.db.list_builds(caller, filter).await.stored()?;
        let now = Timestamp::now();
        let builds = page.builds.iter().map(|build| wire::summary(build, now));
        Ok(TemplateBuildListResponse {
            builds: builds.collect::<std::result::Result<_, _>>().stored()?,
            next_cursor: page.next.map(|id| id.to_string()),
        })
    }

    async fn retry_build(
        &self,
        caller: &Caller,
        build_id: &str,
        mut request: RetryTemplateBuildRequest,
    ) -> Result<Warned<TemplateBuild>> {
        let id = parse(build_id)?;
        let missing = || Error::build_not_found(build_id);
        let earlier = self.inner.db.get_build(caller, id).await.or_missing(missing)?;
        let refuse = |what: &str| {
            let mut error = Error::new(ErrorResponseCode::TransitionConflict, what);
            error.build_id = Some(build_id.to_owned());
            Err(error)
        };
        match earlier.status {
            BuildStatus::Waiting | BuildStatus::Building => {
                return refuse("the build is not over: wait for its end, or cancel it first");
            }
            BuildStatus::Ready => return refuse("the build is ready: there is nothing to retry"),
            BuildStatus::Error | BuildStatus::Cancelled => {}
        }
        let plan: Definition = wire::column("builds.definition", &earlier.definition.0).stored()?;
        if plan.context.has_inline() {
            return Err(Error::invalid(
                "the build's context came with its request and is not kept: start a new build, or upload the files first",
            ));
        }
        let blobs = wanted_blobs(&plan);
        let published = Published::of_plan(&plan);
        let secrets = RequestSecrets {
            base_image_auth: request.base_image_auth.take(),
            registry_auth: request.registry_auth.take().unwrap_or_default(),
            build_secrets: request.build_secrets.take().unwrap_or_default(),
        };
        same_secrets(&plan, &secrets)?;
        if matches!(plan.source, Source::Dockerfile(_)) {
            self.inner.host.ensure_dockerfiles().await?;
        }
        let tags = match &request.tags {
            None => earlier.tags.clone(),
            Some(tags) => parse_tags(tags)?,
        };
        let build = NewBuild {
            id: BuildId::new(),
            artifact_id: ArtifactId::new(),
            name: earlier.name,
            description: earlier.description,
            tags,
            backend: earlier.backend,
            source_type: earlier.source_type,
            definition: earlier.definition,
            build_config: earlier.build_config,
            source_digest: None,
            context_digest: earlier.context_digest,
            dockerfile_digest: earlier.dockerfile_digest,
            triggered_by: Some(caller.namespace.clone()),
            retry_of: Some(earlier.id),
            original: Some(earlier.original.unwrap_or(earlier.id)),
            max_attempts: earlier.max_attempts,
            claim: None,
            idempotency: None,
            blobs,
        };
        let value = self.inner.accept_with(caller, build, secrets).await?;
        let warnings = publication::accepted(value.visibility, &value.canonical_ref, published);
        Ok(Warned { value, warnings })
    }

    async fn promote_build(
        &self,
        caller: &Caller,
        build_id: &str,
        request: PromoteTemplateBuildRequest,
    ) -> Result<Warned<TemplateInfo>> {
        let id = parse(build_id)?;
        if request.tag.is_none() && request.tags.is_none() {
            return Err(Error::invalid("tag is missing: give tag or tags"));
        }
        let wanted: Vec<String> = request.tag.into_iter().chain(request.tags.unwrap_or_default()).collect();
        let tags = parse_tags(&wanted)?;
        let promoted = self.inner.db.promote_build(caller, id, &tags, Timestamp::now()).await;
        let about_build = matches!(promoted, Err(DbError::Conflict { .. }));
        let resolved = promoted.or_missing(|| Error::build_not_found(build_id)).map_err(|error| {
            let build_id = about_build.then(|| build_id.to_owned());
            Error { build_id, ..error }
        })?;
        self.inner.collect.notify_one();
        let info = wire::template(&resolved).stored()?;
        self.inner.publishes_build(caller, id, info).await.stored()
    }
}

/// Refuses a retry unless it brings exactly the secrets that the earlier build had.
fn same_secrets(plan: &Definition, given: &RequestSecrets) -> Result<()> {
    let (base, registries, ids): (bool, &[String], &[String]) = match &plan.source {
        Source::Dockerfile(dockerfile) => {
            (dockerfile.base_registry.is_some(), &dockerfile.registries, &dockerfile.secrets)
        }
        _ => (plan.authenticated, &[], &[]),
    };
    match (&given.base_image_auth, base) {
        (None, true) => {
            return Err(Error::invalid(
                "base_image_auth must be given again: the build was started with it, and credentials are not kept",
            ));
        }
        (Some(_), false) => {
            return Err(Error::invalid("base_image_auth was not part of the build: leave it out"));
        }
        _ => {}
    }
    let mut registries_given: Vec<&str> = given.registry_auth.iter().map(|auth| auth.registry.trim()).collect();
    let mut ids_given: Vec<&str> = given.build_secrets.iter().map(|secret| secret.id.as_str()).collect();
    for (field, wanted, found) in
        [("registry_auth", registries, &mut registries_given), ("build_secrets", ids, &mut ids_given)]
    {
        let mut wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        wanted.sort_unstable();
        found.sort_unstable();
        if wanted != *found {
            let wanted = if wanted.is_empty() { "none".to_owned() } else { wanted.join(", ") };
            return Err(Error::invalid(format!(
                "{field} must be those of the build, whose values are not kept: {wanted}"
            )));
        }
    }
    Ok(())
}
