//! Checks of a request without a build: all its problems, and the plan of the build.
//!
//! ```text
//!   request ──validate::check──> Valid + problems ──> blobs there? room on this host? ──> Examined
//!                                                        ├─ validate: every problem, and whether the source exists
//!                                                        ├─ plan: the steps, Dockerfile-shaped
//!                                                        └─ start_build: refused with all problems, or accepted
//! ```

use std::collections::BTreeSet;

use async_trait::async_trait;
use nullspace_api::{
    CreateTemplateRequest, Envs, ErrorResponseCode, JsonObject, RequestSecrets, TemplateBuildBackend,
    TemplateBuildPlan, TemplateBuildPlanResponse, TemplateBuildSourceType, TemplateBuildValidationError,
    TemplateBuildValidationResponse, TemplateFailureDetail, TemplateFailureDetailCode, TemplateFailurePhase,
    TemplateIgnoredInstruction,
};
use nullspace_definition::machine::{MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB, larger_disk};
use nullspace_definition::problems::{Problem, messages};
use nullspace_definition::readiness::Readiness;
use nullspace_definition::steps::{self, Effect};
use nullspace_definition::validate::{self, Valid, WantedSource};
use nullspace_definition::{Source, keys};
use nullspace_host_interface::{ImageAccess, reason};
use nullspace_image_ref::Written;
use nullspace_service::BuildChecks;
use nullspace_types::{BlobId, Caller};

use super::accept::DEFAULT_BASE;
use crate::error::{Error, Result, Stored, internal};

use crate::{Control, Inner};

/// Most warnings about a Dockerfile's lines.
const MAX_WARNINGS: usize = 100;

/// A request with all its problems.
#[derive(Debug)]
pub(crate) struct Examined {
    valid: Valid,
    problems: Vec<Problem>,
    /// Context files that were not uploaded. The second field has the ids of those that could be uploaded.
    unknown: Vec<Problem>,
    lacking: BTreeSet<BlobId>,
}

impl Examined {
    /// Returns the request if it has no problem.
    pub(crate) fn accepted(self) -> Result<Valid> {
        if !self.problems.is_empty() {
            return Err(Error::invalid(messages(&self.all())));
        }
        if self.unknown.is_empty() {
            return Ok(self.valid);
        }
        let message = messages(&self.unknown);
        let detail = TemplateFailureDetail::new(
            TemplateFailureDetailCode::FileUploadError,
            TemplateFailurePhase::Preflight,
            false,
            message.clone(),
            "Ask POST /v1/templates/blobs/preflight which files to upload, upload them, and send the request again.",
        );
        let detail = detail.with_reason(reason::UNKNOWN_BLOB);
        Err(Error { detail: Some(Box::new(detail)), ..Error::new(ErrorResponseCode::FileUploadError, message) })
    }

    /// Returns the request if missing files are its only problem, and the ids of those files.
    pub(crate) fn accepted_without_files(self) -> Result<(Valid, BTreeSet<BlobId>)> {
        if self.problems.is_empty() {
            return Ok((self.valid, self.lacking));
        }
        Err(Error::invalid(messages(&self.all())))
    }

    fn all(&self) -> Vec<Problem> {
        self.problems.iter().chain(&self.unknown).cloned().collect()
    }
}

impl Inner {
    /// Finds every problem of a request, except whether its source exists.
    pub(crate) async fn examine(
        &self,
        caller: &Caller,
        request: &CreateTemplateRequest,
        secrets: &RequestSecrets,
    ) -> Result<Examined> {
        let (valid, mut problems) = validate::check(request, secrets);
        let machine = &valid.machine;
        let within =
            (MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&machine.memory_mib) && (1..=MAX_VCPUS).contains(&machine.vcpus);
        if within && self.never_fits(machine.memory_mib, machine.vcpus) {
            let limit = self.host.largest_machine(machine.vcpus);
            problems.push(Problem {
                code: "invalid_build_config".to_owned(),
                message: format!(
                    "build_config asks for more than a machine may have here: at most {} MiB and {} vCPUs",
                    limit.memory_mib, limit.vcpus
                ),
                phase: TemplateFailurePhase::Preflight,
            });
        }
        let mut unknown = Vec::new();
        let mut say = |message: String| {
            let code = reason::UNKNOWN_BLOB.to_owned();
            unknown.push(Problem { code, message, phase: TemplateFailurePhase::Preflight });
        };
        for (path, id) in valid.context.unknown_blobs() {
            let (path, id) = (path.escape_debug(), id.escape_debug());
            say(format!("build_context: '{path}' has the blob_id '{id}', which preflight never gives"));
        }
        let mut lacking = BTreeSet::new();
        let wanted: Vec<_> = valid.context.blobs().into_iter().collect();
        if !wanted.is_empty() {
            let found = self.db.find_blobs(caller, &wanted, jiff::Timestamp::now()).await.stored()?;
            for id in wanted.iter().filter(|id| !found.contains(id)) {
                let paths = valid.context.paths_of(id).join(", ");
                say(format!("build_context: {} has blob {id}, which is not uploaded", paths.escape_debug()));
                lacking.insert(id.clone());
            }
        }
        Ok(Examined { valid, problems, unknown, lacking })
    }
}

#[async_trait]
impl BuildChecks for Control {
    async fn validate_build(
        &self,
        caller: &Caller,
        mut request: CreateTemplateRequest,
    ) -> Result<TemplateBuildValidationResponse> {
        let secrets = request.take_secrets();
        let examined = self.inner.examine(caller, &request, &secrets).await?;
        let mut problems = examined.all();
        let valid = examined.valid;
        let mut warnings = warnings(&valid);
        let mut say = |code: &str, message: String| {
            let phase = TemplateFailurePhase::Preflight;
            problems.push(Problem { code: code.to_owned(), message, phase });
        };
        if let WantedSource::Image(reference) = &valid.source {
            match self.inner.source(caller, reference).await {
                Ok(Source::Template { .. }) if secrets.base_image_auth.is_some() => {
                    say("invalid_base_image_auth", AUTH_FOR_TEMPLATE.to_owned());
                }
                Ok(source) => warnings.extend(self.inner.disk_warning(caller, &source, valid.machine.disk_mb).await?),
                Err(error) => match error.code {
                    ErrorResponseCode::InvalidRequest => say("invalid_base_image", error.message),
                    ErrorResponseCode::TemplateNotFound => say("template_not_found", format!("base_image: {error}")),
                    _ => return Err(error),
                },
            }
        }
        if let Some(token) = &request.claim_token
            && let Err(error) = self.inner.claim(caller, token).await
        {
            match error.code {
                ErrorResponseCode::TemplateNameClaimNotFound => {
                    say("template_name_claim_not_found", format!("claim_token: {error}"));
                }
                _ => return Err(error),
            }
        }
        Ok(TemplateBuildValidationResponse {
            valid: problems.is_empty(),
            warnings,
            errors: problems
                .into_iter()
                .map(|problem| TemplateBuildValidationError {
                    code: problem.code,
                    message: problem.message,
                    phase: Some(problem.phase.as_str().to_owned()),
                })
                .collect(),
        })
    }

    async fn plan_build(
        &self,
        caller: &Caller,
        mut request: CreateTemplateRequest,
    ) -> Result<TemplateBuildPlanResponse> {
        let secrets = request.take_secrets();
        let valid = self.inner.examine(caller, &request, &secrets).await?.accepted()?;
        let mut warnings = warnings(&valid);
        let (source_type, base, image) = match (&valid.dockerfile, &valid.source) {
            (Some(outline), _) => {
                let external = |reference: &str| {
                    outline.images.iter().any(|image| image.reference == reference && !image.is_template())
                };
                let image = external(&outline.base).then(|| outline.base.parse().ok()).flatten();
                (TemplateBuildSourceType::Dockerfile, outline.base.clone(), image)
            }
            (None, WantedSource::DefaultBase) => (TemplateBuildSourceType::Declarative, DEFAULT_BASE.to_owned(), None),
            (None, WantedSource::Image(reference)) => {
                let source = self.inner.source(caller, reference).await?;
                warnings.extend(self.inner.disk_warning(caller, &source, valid.machine.disk_mb).await?);
                let image = if let Source::Image { reference } = source { Some(reference) } else { None };
                if image.is_none() && secrets.base_image_auth.is_some() {
                    return Err(Error::invalid(AUTH_FOR_TEMPLATE));
                }
                let kind = match (valid.steps.is_empty(), image.is_some()) {
                    (false, _) => TemplateBuildSourceType::Declarative,
                    (true, true) => TemplateBuildSourceType::OciImport,
                    (true, false) => TemplateBuildSourceType::TemplateBase,
                };
                (kind, reference.clone(), image)
            }
        };
        let given = secrets.base_image_auth.is_some() || !secrets.registry_auth.is_empty();
        let requires_base_image_auth = match image {
            Some(image) if !given => self.inner.wants_credentials(&image, &mut warnings).await,
            _ => false,
        };
        let context = valid.context.summary();
        let digest = match &valid.dockerfile {
            Some(outline) => outline.digest.clone(),
            None => keys::source_digest(&base, &valid.steps).map_err(|error| internal("digest steps", &error))?,
        };
        Ok(TemplateBuildPlanResponse {
            build_backend: match valid.dockerfile {
                Some(_) => TemplateBuildBackend::Buildkit,
                None => TemplateBuildBackend::Native,
            },
            source_type,
            requires_base_image_auth,
            source_digest: Some(format!("sha256:{digest}")),
            context_manifest: context,
            dockerfile_digest: valid.dockerfile.as_ref().map(|outline| format!("sha256:{}", outline.digest)),
            build_plan: shown(&valid, base),
            warnings,
        })
    }
}

const AUTH_FOR_TEMPLATE: &str = "base_image_auth is for images in registries, base_image is a template";

impl Inner {
    /// Returns a warning when a template's disk is larger than the disk that a child of it asks for.
    async fn disk_warning(&self, caller: &Caller, source: &Source, asked: Option<u32>) -> Result<Option<String>> {
        let Source::Template { reference, .. } = source else { return Ok(None) };
        let parent = self.resolve(caller, reference).await?;
        Ok(larger_disk(asked, parent.artifact.disk_bytes, reference))
    }

    /// Whether a registry refuses to show an image without credentials. An unknown answer becomes a warning.
    async fn wants_credentials(&self, reference: &Written, warnings: &mut Vec<String>) -> bool {
        match self.host.image_access(reference.reference()).await {
            ImageAccess::Open => false,
            ImageAccess::NeedsCredentials => true,
            ImageAccess::Unknown(cause) => {
                warnings.push(format!("it is unknown whether {reference} needs credentials: {cause}"));
                false
            }
        }
    }

    /// True when a machine of this size can never start, even on an idle host.
    fn never_fits(&self, memory_mib: u32, vcpus: u32) -> bool {
        let largest = self.host.largest_machine(vcpus);
        u64::from(memory_mib) > largest.memory_mib || u64::from(vcpus) > largest.vcpus
    }
}

/// Warnings about a valid request.
fn warnings(valid: &Valid) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Err(error) = valid.runnable() {
        warnings.push(format!("this service cannot run the build: {error}"));
    }
    for (line, warning) in valid.dockerfile.iter().flat_map(|outline| &outline.warnings).take(MAX_WARNINGS) {
        warnings.push(format!("line {line}: {warning}"));
    }
    for (instruction, line) in valid.dockerfile.iter().flat_map(|outline| &outline.ignored) {
        warnings.push(format!("line {line}: {instruction} has no effect in a template"));
    }
    warnings
}

/// The plan in the form of a Dockerfile.
fn shown(valid: &Valid, base: String) -> TemplateBuildPlan {
    let mut plan = TemplateBuildPlan {
        base_template: base,
        build_envs: Envs::from(valid.build_envs.clone()),
        start_cmd: valid.start_cmd.clone(),
        default_user: valid.runtime.user.clone(),
        default_workdir: valid.runtime.workdir.clone(),
        readiness: valid.runtime.readiness.as_ref().map(Readiness::shown),
        ..TemplateBuildPlan::default()
    };
    if let Some(outline) = &valid.dockerfile {
        let run = outline.steps.iter().filter(|step| step.instruction == "RUN");
        plan.run_steps = run.map(|step| step.arguments.clone()).collect();
        plan.build_steps = outline.steps.iter().map(|step| step.shown()).collect::<Vec<JsonObject>>();
        plan.env_assignments = outline.envs.iter().map(|(name, value)| vec![name.clone(), value.clone()]).collect();
        plan.start_cmd = plan.start_cmd.or_else(|| outline.start.clone());
        plan.default_user = plan.default_user.or_else(|| outline.user.clone());
        plan.default_workdir = plan.default_workdir.or_else(|| outline.workdir.clone());
        for (instruction, line) in &outline.ignored {
            plan.ignored_instructions.push(instruction.clone());
            plan.ignored_instruction_warnings
                .push(TemplateIgnoredInstruction { instruction: instruction.clone(), line: *line });
        }
        return plan;
    }
    for step in &valid.steps {
        match steps::effect(step) {
            Effect::User(user) => plan.default_user = Some(user.to_owned()),
            Effect::Workdir(path) => plan.default_workdir = Some(path.to_owned()),
            Effect::Tasks(_) | Effect::CacheBoundary => {}
        }
        for line in steps::render(step) {
            if line.instruction == "RUN" {
                plan.run_steps.push(line.arguments.clone());
            }
            plan.build_steps.push(line.shown());
        }
    }
    plan.env_assignments = valid.build_envs.iter().map(|(name, value)| vec![name.clone(), value.clone()]).collect();
    // What the request says outright goes before what its steps leave behind.
    plan.default_user = valid.runtime.user.clone().or(plan.default_user);
    plan.default_workdir = valid.runtime.workdir.clone().or(plan.default_workdir);
    plan
}
