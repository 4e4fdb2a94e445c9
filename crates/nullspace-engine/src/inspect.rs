//! Requests looked at without building: all that is wrong with one, and what a build of it would do.
//!
//! ```text
//!   request ──validate::check──> Valid + problems ──> blobs there? room on this host? ──> Examined
//!                                                        ├─ validate: every problem, and whether the source exists
//!                                                        ├─ plan: the steps, Dockerfile-shaped
//!                                                        └─ start_build: refused with all problems, or accepted
//! ```

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use nullspace_api::{
    CreateTemplateRequest, Envs, ErrorResponseCode, JsonObject, RequestSecrets, TemplateBuildBackend,
    TemplateBuildPlan, TemplateBuildPlanResponse, TemplateBuildSourceType, TemplateBuildValidationError,
    TemplateBuildValidationResponse, TemplateFailureDetail, TemplateFailureDetailCode, TemplateFailurePhase,
    TemplateIgnoredInstruction, TemplateStep,
};
use nullspace_service::BuildChecks;
use nullspace_store::{BlobId, Caller};
use sha2::{Digest, Sha256};

use crate::builds::DEFAULT_BASE;
use crate::error::{Error, Result, Stored, internal};
use crate::failure::reason;
use crate::plan::{Source, readiness_to_api};
use crate::preflight::larger_disk;
use crate::validate::{self, Problem, Valid, WantedSource};
use crate::{Engine, Inner, image, steps};

/// How long a plan waits for a registry's answer.
const ASK_REGISTRY: Duration = Duration::from_secs(10);
/// Warnings about a Dockerfile's lines: more would say nothing new.
const MAX_WARNINGS: usize = 100;

/// A request with all that is wrong with it.
#[derive(Debug)]
pub(crate) struct Examined {
    valid: Valid,
    problems: Vec<Problem>,
    /// Files of the context that nobody uploaded, and those of their ids that could be uploaded.
    unknown: Vec<Problem>,
    lacking: BTreeSet<BlobId>,
}

impl Examined {
    /// The request, if nothing is wrong with it.
    pub(crate) fn accepted(self) -> Result<Valid> {
        if !self.problems.is_empty() {
            return Err(Error::invalid(validate::messages(&self.all())));
        }
        if self.unknown.is_empty() {
            return Ok(self.valid);
        }
        let message = validate::messages(&self.unknown);
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

    /// The request, if nothing is wrong with it but that files were not uploaded; and which of them.
    pub(crate) fn accepted_without_files(self) -> Result<(Valid, BTreeSet<BlobId>)> {
        if self.problems.is_empty() {
            return Ok((self.valid, self.lacking));
        }
        Err(Error::invalid(validate::messages(&self.all())))
    }

    fn all(&self) -> Vec<Problem> {
        self.problems.iter().chain(&self.unknown).cloned().collect()
    }
}

impl Inner {
    /// Everything that is wrong with a request, but for whether its source exists.
    pub(crate) async fn examine(
        &self,
        caller: &Caller,
        request: &CreateTemplateRequest,
        secrets: &RequestSecrets,
    ) -> Result<Examined> {
        let (valid, mut problems) = validate::check(request, secrets);
        let machine = &valid.machine;
        let within = (validate::MIN_MEMORY_MIB..=validate::MAX_MEMORY_MIB).contains(&machine.memory_mib)
            && (1..=validate::MAX_VCPUS).contains(&machine.vcpus);
        if within && self.admission.never_fits(machine.memory_mib, machine.vcpus) {
            let limit = self.admission.largest(machine.vcpus);
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
            let found = self.metadata.find_blobs(caller, &wanted, jiff::Timestamp::now()).await.stored()?;
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
impl BuildChecks for Engine {
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
                let image = external(&outline.base).then(|| outline.base.clone());
                (TemplateBuildSourceType::Dockerfile, outline.base.clone(), image)
            }
            (None, WantedSource::DefaultBase) => (TemplateBuildSourceType::Declarative, DEFAULT_BASE.to_owned(), None),
            (None, WantedSource::Image(reference)) => {
                let source = self.inner.source(caller, reference).await?;
                warnings.extend(self.inner.disk_warning(caller, &source, valid.machine.disk_mb).await?);
                let image = matches!(source, Source::Image { .. });
                if !image && secrets.base_image_auth.is_some() {
                    return Err(Error::invalid(AUTH_FOR_TEMPLATE));
                }
                let kind = match (valid.steps.is_empty(), image) {
                    (false, _) => TemplateBuildSourceType::Declarative,
                    (true, true) => TemplateBuildSourceType::OciImport,
                    (true, false) => TemplateBuildSourceType::TemplateBase,
                };
                (kind, reference.clone(), image.then(|| reference.clone()))
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
            None => definition_digest(&base, &valid.steps)?,
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
    /// A warning when a template's disk is larger than what a child of it asks for.
    async fn disk_warning(&self, caller: &Caller, source: &Source, asked: Option<u32>) -> Result<Option<String>> {
        let Source::Template { reference, .. } = source else { return Ok(None) };
        let parent = self.resolve(caller, reference).await?;
        Ok(larger_disk(asked, parent.artifact.disk_bytes, reference))
    }

    /// Whether a registry refuses to show an image to nobody in particular. What cannot be found out is a warning.
    async fn wants_credentials(&self, reference: &str, warnings: &mut Vec<String>) -> bool {
        let asked = tokio::time::timeout(ASK_REGISTRY, image::resolve(&self.registry, reference, None)).await;
        let cause = match asked {
            Ok(Ok(_)) => return false,
            Ok(Err(failure)) if failure.code == TemplateFailureDetailCode::Unauthorized => return true,
            Ok(Err(failure)) => failure.message,
            Err(_) => format!("its registry did not answer within {} s", ASK_REGISTRY.as_secs()),
        };
        warnings.push(format!("whether {reference} needs credentials could not be found out: {cause}"));
        false
    }
}

/// What the user should know of a sound request.
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

/// Digest of what a request without a Dockerfile builds from and does.
fn definition_digest(base: &str, steps: &[TemplateStep]) -> Result<String> {
    let steps = serde_json::to_vec(steps).map_err(|error| internal("digest steps", &error))?;
    let mut hash = Sha256::new();
    for part in [base.as_bytes(), &steps] {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
        hash.update(part);
    }
    Ok(hex::encode(hash.finalize()))
}

/// The Dockerfile-shaped plan.
fn shown(valid: &Valid, base: String) -> TemplateBuildPlan {
    let mut plan = TemplateBuildPlan {
        base_template: base,
        build_envs: Envs::from(valid.build_envs.clone()),
        start_cmd: valid.start_cmd.clone(),
        default_user: valid.runtime.user.clone(),
        default_workdir: valid.runtime.workdir.clone(),
        readiness: valid.runtime.readiness.as_ref().map(readiness_to_api),
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
        match step {
            TemplateStep::User(user) => plan.default_user = Some(user.user.clone()),
            TemplateStep::Workdir(workdir) => plan.default_workdir = Some(workdir.path.clone()),
            _ => {}
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
