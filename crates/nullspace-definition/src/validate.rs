//! The rules of a build request, checked before a build is accepted.

use std::collections::BTreeMap;

use nullspace_api::{
    CreateTemplateRequest, RequestSecrets, TemplateBuildBackend, TemplateReadinessProbe, TemplateStep,
};
use nullspace_types::{Tag, TemplateName};

use crate::context::{self, Context};
use crate::dockerfile::{self, Outline};
use crate::machine::{MAX_DISK_MB, MAX_MEMORY_MIB, MAX_VCPUS, MIN_DISK_MB, MIN_MEMORY_MIB, MachineSize};
use crate::problems::{Problem, Wrong};
use crate::readiness::{Readiness, Timing};
use crate::runtime::RuntimeWish;
use crate::steps;

/// Longest time limit of a readiness check, seconds.
const MAX_READY_SECS: u64 = 3_600;

/// A checked request, as far as its parts are valid.
#[derive(Debug)]
pub struct Valid {
    /// The name, or the alias.
    pub name: Option<TemplateName>,
    /// The tags, sorted, each once.
    pub tags: Vec<Tag>,
    /// The source, if there is no Dockerfile.
    pub source: WantedSource,
    /// The steps.
    pub steps: Vec<TemplateStep>,
    /// The outline of the Dockerfile.
    pub dockerfile: Option<Outline>,
    /// The Dockerfile's path in the context.
    pub dockerfile_path: Option<String>,
    /// Build arguments of the Dockerfile.
    pub build_args: BTreeMap<String, String>,
    /// The stage to build.
    pub build_target: Option<String>,
    /// The files that steps and Dockerfile copy.
    pub context: Context,
    /// Size and network access of the machine.
    pub machine: MachineSize,
    /// Build-time variables.
    pub build_envs: BTreeMap<String, String>,
    /// The start command, if it is not blank.
    pub start_cmd: Option<String>,
    /// The resume command, if it is not blank.
    pub resume_cmd: Option<String>,
    /// The request's runtime settings.
    pub runtime: RuntimeWish,
    /// True: nothing is reused.
    pub skip_cache: bool,
}

/// The source in the request.
#[derive(Debug, PartialEq, Eq)]
pub enum WantedSource {
    /// `base_image`: an OCI or a template reference.
    Image(String),
    /// No source: the default base, as it is.
    DefaultBase,
}

impl Valid {
    /// Whether this version can run the build, not only check and plan it.
    ///
    /// # Errors
    /// [`NotRunnable`] when BuildKit cannot build the Dockerfile.
    pub fn runnable(&self) -> Result<(), NotRunnable> {
        let template = self.dockerfile.iter().flat_map(|outline| &outline.images).find(|image| image.is_template());
        if let Some(image) = template {
            return Err(NotRunnable(format!(
                "line {} of the Dockerfile uses the template {}: BuildKit cannot; give it as base_image, with steps",
                image.line, image.reference
            )));
        }
        Ok(())
    }
}

/// A valid request whose build this version cannot run. `Display` has the reason and the advice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotRunnable(String);

/// Checks a request as far as possible without the database. Returns its valid parts and all problems.
pub fn check(request: &CreateTemplateRequest, secrets: &RequestSecrets) -> (Valid, Vec<Problem>) {
    let mut wrong = Wrong::default();

    let name = request.name.as_deref().map(|name| ("name", name));
    let name = name.or(request.alias.as_deref().map(|alias| ("alias", alias)));
    let name = name.and_then(|(field, text)| wrong.parse::<TemplateName>(field, text));
    let tags = tags(request, &mut wrong);
    let machine = machine(request, &mut wrong);
    let build_envs = wrong.envs("build_envs", request.build_envs.as_ref());
    let start_cmd = request.start_cmd.clone().filter(|line| !line.trim().is_empty());
    if let Some(line) = &start_cmd {
        wrong.text("start_cmd", line);
    }
    let resume_cmd = request.resume_cmd.clone().filter(|line| !line.trim().is_empty());
    if let Some(line) = &resume_cmd {
        wrong.text("resume_cmd", line);
    }
    let runtime = runtime(request, &mut wrong);
    let source = match request.base_image.as_deref() {
        Some(image) if image.trim().is_empty() => {
            wrong.say("base_image", "is empty");
            WantedSource::DefaultBase
        }
        Some(image) => WantedSource::Image(image.trim().to_owned()),
        None => WantedSource::DefaultBase,
    };
    let context = context::check(request.build_context.as_ref(), &mut wrong);
    let steps = request.steps.clone().unwrap_or_default();
    steps::check(&steps, &context, &mut wrong);
    exclusions(request, secrets, &mut wrong);
    let build_args = match request.dockerfile {
        Some(_) => wrong.envs("build_args", request.build_args.as_ref()),
        None => BTreeMap::new(),
    };
    // BuildKit is given both, the arguments over the variables.
    let mut args = build_envs.clone();
    args.extend(build_args.clone());
    let dockerfile = request
        .dockerfile
        .as_deref()
        .and_then(|text| dockerfile::check(text, &args, request.build_target.as_deref(), secrets, &mut wrong));
    if let Some(path) = &request.dockerfile_path {
        context::check_path("dockerfile_path", path, &mut wrong);
    }
    let valid = Valid {
        name,
        tags,
        source,
        steps,
        dockerfile,
        dockerfile_path: request.dockerfile_path.clone(),
        build_args,
        build_target: request.build_target.clone(),
        context,
        machine,
        build_envs,
        start_cmd,
        resume_cmd,
        runtime,
        skip_cache: request.skip_cache.unwrap_or_default(),
    };
    (valid, wrong.into_problems())
}

/// Fields that exclude or need each other.
fn exclusions(request: &CreateTemplateRequest, secrets: &RequestSecrets, wrong: &mut Wrong) {
    let steps = request.steps.as_ref().is_some_and(|steps| !steps.is_empty());
    if request.dockerfile.is_some() && (request.base_image.is_some() || steps) {
        wrong.say("dockerfile", "excludes base_image and steps: give exactly one source");
    }
    if request.dockerfile.is_some() && request.build_backend == Some(TemplateBuildBackend::Native) {
        wrong.say("build_backend", "is native: Dockerfiles are built by buildkit");
    }
    if request.dockerfile.is_none() {
        for (field, given) in [
            ("dockerfile_path", request.dockerfile_path.is_some()),
            ("build_args", request.build_args.as_ref().is_some_and(|args| !args.is_empty())),
            ("build_target", request.build_target.is_some()),
            ("build_secrets", !secrets.build_secrets.is_empty()),
            ("registry_auth", !secrets.registry_auth.is_empty()),
        ] {
            if given {
                wrong.say(field, "is for Dockerfiles only");
            }
        }
        if !steps && request.build_context.as_ref().is_some_and(|context| !context.files.is_empty()) {
            wrong.say("build_context", "is for Dockerfiles and steps only");
        }
        if request.build_backend == Some(TemplateBuildBackend::Buildkit) {
            wrong.say("build_backend", "is buildkit: only Dockerfiles are built by it");
        }
    }
    if secrets.base_image_auth.is_some() && request.base_image.is_none() && request.dockerfile.is_none() {
        wrong.say("base_image_auth", "needs base_image");
    }
}

fn tags(request: &CreateTemplateRequest, wrong: &mut Wrong) -> Vec<Tag> {
    let Some(tags) = &request.tags else { return vec![Tag::default_tag()] };
    if tags.is_empty() {
        wrong.say("tags", "is empty: leave it out for [\"default\"]");
    }
    if tags.len() > 64 {
        wrong.say("tags", "has more than 64 entries");
        return Vec::new();
    }
    let mut parsed: Vec<Tag> = tags.iter().filter_map(|tag| wrong.parse("tags", tag)).collect();
    parsed.sort();
    parsed.dedup();
    parsed
}

fn machine(request: &CreateTemplateRequest, wrong: &mut Wrong) -> MachineSize {
    let config = request.build_config.clone().unwrap_or_default();
    let machine = MachineSize {
        vcpus: config.vcpus.unwrap_or(1),
        memory_mib: config.memory_mib.unwrap_or(512),
        internet_access: config.internet_access.unwrap_or(true),
        disk_mb: config.disk_mb,
    };
    wrong.range("build_config.vcpus", machine.vcpus, 1, MAX_VCPUS);
    wrong.range("build_config.memory_mib", machine.memory_mib, MIN_MEMORY_MIB, MAX_MEMORY_MIB);
    if let Some(disk_mb) = machine.disk_mb {
        wrong.range("build_config.disk_mb", disk_mb, MIN_DISK_MB, MAX_DISK_MB);
    }
    machine
}

fn runtime(request: &CreateTemplateRequest, wrong: &mut Wrong) -> RuntimeWish {
    let Some(config) = &request.runtime_config else { return RuntimeWish::default() };
    if let Some(user) = &config.default_user {
        wrong.text("runtime_config.default_user", user);
        if user.is_empty() || user.len() > 256 {
            wrong.say("runtime_config.default_user", "must have 1 to 256 bytes");
        }
    }
    if let Some(workdir) = &config.default_workdir {
        wrong.absolute("runtime_config.default_workdir", workdir);
    }
    RuntimeWish {
        user: config.default_user.clone(),
        workdir: config.default_workdir.clone(),
        envs: wrong.envs("runtime_config.default_envs", config.default_envs.as_ref()),
        readiness: config.readiness.as_ref().map(|probe| readiness(probe, wrong)),
    }
}

fn readiness(probe: &TemplateReadinessProbe, wrong: &mut Wrong) -> Readiness {
    const FIELD: &str = "runtime_config.readiness";
    let mut timing = |timeout_secs: Option<u64>, interval_ms: Option<u64>, startup_grace_secs: Option<u64>| {
        let default = Timing::default();
        let timing = Timing {
            timeout_secs: timeout_secs.unwrap_or(default.timeout_secs),
            interval_ms: interval_ms.unwrap_or(default.interval_ms),
            startup_grace_secs: startup_grace_secs.unwrap_or(default.startup_grace_secs),
        };
        wrong.range("runtime_config.readiness.timeout_secs", timing.timeout_secs, 1, MAX_READY_SECS);
        wrong.range("runtime_config.readiness.interval_ms", timing.interval_ms, 10, 60_000);
        wrong.range("runtime_config.readiness.startup_grace_secs", timing.startup_grace_secs, 0, MAX_READY_SECS);
        timing
    };
    match probe {
        TemplateReadinessProbe::Tcp(tcp) => {
            let timing = timing(tcp.timeout_secs, tcp.interval_ms, tcp.startup_grace_secs);
            wrong.range("runtime_config.readiness.port", tcp.port, 1, u16::MAX);
            Readiness::Tcp { port: tcp.port, timing }
        }
        TemplateReadinessProbe::Http(http) => {
            let timing = timing(http.timeout_secs, http.interval_ms, http.startup_grace_secs);
            wrong.range("runtime_config.readiness.port", http.port, 1, u16::MAX);
            let bad = |byte: u8| byte <= b' ' || byte == 0x7f;
            if !http.path.starts_with('/') || http.path.bytes().any(bad) || http.path.len() > 4096 {
                wrong.say(FIELD, "has a path that is not an absolute URL path");
            }
            Readiness::Http { port: http.port, path: http.path.clone(), timing }
        }
        TemplateReadinessProbe::Command(command) => {
            let timing = timing(command.timeout_secs, command.interval_ms, command.startup_grace_secs);
            if command.command.trim().is_empty() {
                wrong.say("runtime_config.readiness.command", "is empty");
            }
            wrong.text("runtime_config.readiness.command", &command.command);
            Readiness::Command { command: command.command.clone(), argv: Vec::new(), attempt_secs: None, timing }
        }
        TemplateReadinessProbe::Timeout(timeout) => {
            wrong.range("runtime_config.readiness.timeout_ms", timeout.timeout_ms, 0, MAX_READY_SECS * 1000);
            Readiness::Timeout { timeout_ms: timeout.timeout_ms }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::problems::Invalid;

    fn checked(request: Value) -> Result<Valid, Invalid> {
        let mut request: CreateTemplateRequest = serde_json::from_value(request).unwrap();
        let secrets = request.take_secrets();
        let (valid, problems) = check(&request, &secrets);
        if problems.is_empty() { Ok(valid) } else { Err(Invalid(problems)) }
    }

    #[test]
    fn every_fault_is_named_at_once() {
        let error = checked(json!({
            "name": "no spaces", "tags": [], "base_image": " ",
            "build_config": {"vcpus": 0, "memory_mib": 1, "disk_mb": 511},
            "build_envs": {"A=B": "x"}, "start_cmd": "a\u{0}b", "resume_cmd": "a\u{0}b",
            "runtime_config": {"default_workdir": "rel/../x", "readiness": {"kind": "http", "port": 0, "path": "x y"}},
            "build_args": {"A": "1"}, "build_backend": "buildkit"
        }))
        .unwrap_err();
        let message = error.to_string();
        for field in [
            "name",
            "tags",
            "base_image",
            "build_config.vcpus",
            "build_config.memory_mib",
            "build_config.disk_mb",
            "build_envs",
            "start_cmd",
            "resume_cmd",
            "default_workdir is not an absolute path",
            "default_workdir contains '..'",
            "readiness.port",
            "readiness has a path",
            "build_args",
            "build_backend",
        ] {
            assert!(message.contains(field), "{field}: {message}");
        }
    }

    #[test]
    fn numbers_beyond_their_range_are_refused_with_it() {
        for (field, low, high) in [("vcpus", 1_u64, 32_u64), ("memory_mib", 128, 65_536), ("disk_mb", 512, 1_048_576)] {
            for (value, sound) in
                [(low, true), (high, true), (low - 1, false), (high + 1, false), (4_294_967_295, false)]
            {
                let answer = checked(json!({"build_config": {field: value}}));
                let said = answer.err().map(|error| error.to_string()).unwrap_or_default();
                assert_eq!(said.is_empty(), sound, "{field} {value}: {said}");
                assert!(sound || said.contains(field) && said.contains(&format!("{low} to {high}")), "{said}");
            }
        }
        for (probe, field) in [
            (json!({"kind": "tcp", "port": 80, "timeout_secs": 0}), "timeout_secs"),
            (json!({"kind": "tcp", "port": 80, "timeout_secs": 4_294_967_295_u64}), "timeout_secs"),
            (json!({"kind": "tcp", "port": 80, "interval_ms": 0}), "interval_ms"),
            (json!({"kind": "http", "port": 80, "path": "/", "startup_grace_secs": 3601}), "startup_grace_secs"),
            (json!({"kind": "timeout", "timeout_ms": u64::MAX}), "timeout_ms"),
        ] {
            let error = checked(json!({"runtime_config": {"readiness": probe}})).unwrap_err();
            let message = error.to_string();
            assert!(message.contains(field) && message.contains("it must be"), "{message}");
        }
    }

    #[test]
    fn values_of_variables_are_never_in_a_message() {
        let error = checked(json!({"build_envs": {"TOKEN": "hunter2\u{0}"}})).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("build_envs.TOKEN") && !message.contains("hunter2"), "{message}");
    }

    #[test]
    fn the_contracts_defaults_are_filled_in() {
        let valid = checked(json!({
            "alias": "web", "base_image": "ubuntu:22.04", "runtime_config": {"readiness": {"kind": "tcp", "port": 80}}
        }))
        .unwrap();
        assert_eq!(valid.name.unwrap().as_str(), "web");
        assert_eq!(valid.tags, [Tag::default_tag()]);
        assert_eq!(valid.source, WantedSource::Image("ubuntu:22.04".into()));
        assert_eq!((valid.machine.vcpus, valid.machine.memory_mib, valid.machine.internet_access), (1, 512, true));
        let Some(Readiness::Tcp { timing, .. }) = valid.runtime.readiness else { panic!() };
        assert_eq!((timing.timeout_secs, timing.interval_ms, timing.startup_grace_secs), (30, 500, 2));
    }

    #[test]
    fn what_this_version_cannot_do_is_said_after_what_is_wrong() {
        checked(json!({"dockerfile": "FROM scratch"})).unwrap().runnable().unwrap();
        for text in ["FROM nullspace/base", "FROM scratch\nCOPY --from=nullspace/base /x /x"] {
            let error = checked(json!({"dockerfile": text})).unwrap().runnable().unwrap_err();
            assert!(error.to_string().contains("BuildKit cannot"), "{text}: {error}");
        }
        checked(json!({"dockerfile": "FROM scratch", "base_image": "x"})).unwrap_err();
    }

    #[test]
    fn every_problem_has_its_fields_code() {
        let request: CreateTemplateRequest =
            serde_json::from_value(json!({"tags": [], "build_config": {"vcpus": 0}, "build_target": "x"})).unwrap();
        let (_, problems) = check(&request, &RequestSecrets::default());
        let codes: Vec<&str> = problems.iter().map(|problem| problem.code.as_str()).collect();
        assert_eq!(codes, ["invalid_tags", "invalid_build_config", "invalid_build_target"]);
    }
}
