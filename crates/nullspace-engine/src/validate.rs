//! A request into a plan: every rule of the request, checked before anything is accepted.
//!
//! Rules are checked all, not up to the first, so that one answer names everything to mend.

use std::collections::BTreeMap;

use nullspace_api::{
    CreateSandboxRequest, CreateTemplateRequest, Envs, RequestSecrets, TemplateBuildBackend, TemplateFailurePhase,
    TemplateReadinessProbe, TemplateStep,
};
use nullspace_store::{Tag, TemplateName};

use crate::context::{self, Context};
use crate::dockerfile::{self, Outline};
use crate::error::{Error, Result};
use crate::plan::{MachineSize, RuntimeWish};
use crate::readiness::{Readiness, Timing};
use crate::steps;

/// Smallest disk, MiB, from the contract.
pub(crate) const MIN_DISK_MB: u32 = 512;
/// Bounds of a machine, whatever the host has.
pub(crate) const MAX_VCPUS: u32 = 32;
/// Guests below this do not boot with their initramfs.
pub(crate) const MIN_MEMORY_MIB: u32 = 128;
/// Largest memory of a machine, MiB.
pub(crate) const MAX_MEMORY_MIB: u32 = 65_536;
/// Largest disk, MiB.
pub(crate) const MAX_DISK_MB: u32 = 1_048_576;
/// Bytes of a path and of one name in it, as Linux takes them.
pub(crate) const MAX_PATH: usize = 4095;
const MAX_NAME: usize = 255;
/// Variables of one map.
const MAX_ENVS: usize = 1_000;
/// Bytes of one variable's value, start, resume or readiness command: what `execve` takes as one argument.
pub(crate) const MAX_TEXT: usize = 128 * 1024 - 1;
/// Seconds of a readiness check.
const MAX_READY_SECS: u64 = 3_600;

/// A request that was looked at, as far as its parts are sound.
#[derive(Debug)]
pub(crate) struct Valid {
    pub(crate) name: Option<TemplateName>,
    pub(crate) tags: Vec<Tag>,
    pub(crate) source: WantedSource,
    pub(crate) steps: Vec<TemplateStep>,
    pub(crate) dockerfile: Option<Outline>,
    pub(crate) dockerfile_path: Option<String>,
    pub(crate) build_args: BTreeMap<String, String>,
    pub(crate) build_target: Option<String>,
    pub(crate) context: Context,
    pub(crate) machine: MachineSize,
    pub(crate) build_envs: BTreeMap<String, String>,
    pub(crate) start_cmd: Option<String>,
    pub(crate) resume_cmd: Option<String>,
    pub(crate) runtime: RuntimeWish,
    pub(crate) skip_cache: bool,
}

/// What the request builds from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum WantedSource {
    /// `base_image`: an OCI or a template reference.
    Image(String),
    /// No source: the default base, as it is.
    DefaultBase,
}

impl Valid {
    /// An error when this version can check and plan such a build but not run it.
    pub(crate) fn runnable(&self) -> Result<()> {
        let template = self.dockerfile.iter().flat_map(|outline| &outline.images).find(|image| image.is_template());
        if let Some(image) = template {
            return Err(Error::not_implemented(format!(
                "line {} of the Dockerfile uses the template {}: BuildKit cannot; give it as base_image, with steps",
                image.line, image.reference
            )));
        }
        Ok(())
    }
}

/// Checks everything that can be checked without the database: what the request says, and all that is wrong with it.
pub(crate) fn check(request: &CreateTemplateRequest, secrets: &RequestSecrets) -> (Valid, Vec<Problem>) {
    let mut wrong = Wrong::default();

    let name = request.name.as_deref().map(|name| ("name", name));
    let name = name.or(request.alias.as_deref().map(|alias| ("alias", alias)));
    let name = name.and_then(|(field, text)| wrong.parse::<TemplateName>(field, text));
    let tags = tags(request, &mut wrong);
    let machine = machine(request, &mut wrong);
    let build_envs = envs("build_envs", request.build_envs.as_ref(), &mut wrong);
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
        Some(_) => envs("build_args", request.build_args.as_ref(), &mut wrong),
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
    (valid, wrong.0)
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

/// One thing that is wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// `invalid_<field>`, or what the contract calls it.
    pub(crate) code: String,
    /// Begins with the field.
    pub(crate) message: String,
    /// What a build would have failed in.
    pub(crate) phase: TemplateFailurePhase,
}

/// What is wrong with a request, field by field.
#[derive(Default)]
pub(crate) struct Wrong(Vec<Problem>);

impl Wrong {
    pub(crate) fn say(&mut self, field: &str, what: impl std::fmt::Display) {
        let top = field.split(['.', '[']).next().unwrap_or(field);
        self.0.push(Problem {
            code: format!("invalid_{top}"),
            message: format!("{field} {what}"),
            phase: TemplateFailurePhase::Preflight,
        });
    }

    fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(&mut self, field: &str, text: &str) -> Option<T> {
        text.parse().map_err(|error| self.say(field, format_args!("is not valid: {error}"))).ok()
    }

    fn range<T: PartialOrd + std::fmt::Display>(&mut self, field: &str, value: T, low: T, high: T) {
        if value < low || value > high {
            self.say(field, format_args!("is {value}: it must be {low} to {high}"));
        }
    }

    /// Text that becomes an argument or a variable of a process.
    pub(crate) fn text(&mut self, field: &str, text: &str) {
        if text.contains('\0') {
            self.say(field, "contains a NUL character");
        }
        if text.len() > MAX_TEXT {
            self.say(field, format_args!("is longer than {MAX_TEXT} bytes"));
        }
    }

    /// A path that no file system takes: one of its names, or the whole, is too long.
    pub(crate) fn lengths(&mut self, field: &str, path: &str) {
        if path.len() > MAX_PATH {
            self.say(field, format_args!("is longer than {MAX_PATH} bytes"));
        }
        if let Some(name) = path.split('/').find(|name| name.len() > MAX_NAME) {
            let begin: String = name.chars().take(20).collect();
            let what =
                format!("has a name of {} bytes ('{}…'): {MAX_NAME} are the most", name.len(), begin.escape_debug());
            self.say(field, what);
        }
    }

    /// Takes over what another found; returns how much that is.
    pub(crate) fn take(&mut self, other: Wrong) -> usize {
        let count = other.0.len();
        self.0.extend(other.0);
        count
    }

    #[cfg(test)]
    pub(crate) fn into_message(self) -> String {
        messages(&self.0)
    }

    /// An error that names all of it.
    pub(crate) fn result(self) -> Result<()> {
        match self.0.as_slice() {
            [] => Ok(()),
            problems => Err(Error::invalid(messages(problems))),
        }
    }
}

/// All problems as one sentence.
pub(crate) fn messages(problems: &[Problem]) -> String {
    problems.iter().map(|problem| problem.message.as_str()).collect::<Vec<_>>().join("; ")
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
        check_path("runtime_config.default_workdir", workdir, wrong);
    }
    RuntimeWish {
        user: config.default_user.clone(),
        workdir: config.default_workdir.clone(),
        envs: envs("runtime_config.default_envs", config.default_envs.as_ref(), wrong),
        readiness: config.readiness.as_ref().map(|probe| readiness(probe, wrong)),
    }
}

fn check_path(field: &str, path: &str, wrong: &mut Wrong) {
    wrong.text(field, path);
    if !path.starts_with('/') {
        wrong.say(field, "is not an absolute path");
    }
    if path.split('/').any(|part| part == "..") {
        wrong.say(field, "contains '..'");
    }
    wrong.lengths(field, path);
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

fn envs(field: &str, envs: Option<&Envs>, wrong: &mut Wrong) -> BTreeMap<String, String> {
    let Some(envs) = envs else { return BTreeMap::new() };
    if envs.len() > MAX_ENVS {
        wrong.say(field, format_args!("has more than {MAX_ENVS} variables"));
    }
    for (key, value) in envs {
        if key.is_empty() || key.contains(['=', '\0']) || key.len() > 256 {
            wrong.say(field, "has a key that is empty, longer than 256 bytes, or contains '=' or NUL");
        }
        wrong.text(&format!("{field}.{key}"), value);
    }
    envs.0.clone()
}

/// Variables given when a sandbox is made or a command is run.
pub(crate) fn check_envs(field: &str, given: Option<&Envs>) -> Result<BTreeMap<String, String>> {
    let mut wrong = Wrong::default();
    let checked = envs(field, given, &mut wrong);
    wrong.result()?;
    Ok(checked)
}

/// Bytes of a sandbox's `metadata` as JSON.
const MAX_METADATA: usize = 64 * 1024;
/// Longest life that a create may ask for, milliseconds.
const MAX_TIMEOUT_MS: u64 = 24 * 3600 * 1000;

/// Every field of a create that has a range, whatever the template is.
pub(crate) fn check_create(request: &CreateSandboxRequest) -> Result<()> {
    let mut wrong = Wrong::default();
    let sizes = [
        ("vcpus", request.vcpus, 1, MAX_VCPUS),
        ("memory_mb", request.memory_mb, MIN_MEMORY_MIB, MAX_MEMORY_MIB),
        ("disk_mb", request.disk_mb, MIN_DISK_MB, MAX_DISK_MB),
    ];
    for (field, value, low, high) in sizes {
        value.iter().for_each(|value| wrong.range(field, *value, low, high));
    }
    request.timeout_ms.iter().for_each(|timeout| wrong.range("timeout_ms", *timeout, 1, MAX_TIMEOUT_MS));
    if let Some(cwd) = &request.cwd {
        check_path("cwd", cwd, &mut wrong);
    }
    envs("envs", request.envs.as_ref(), &mut wrong);
    let metadata = request.metadata.as_ref().and_then(|metadata| serde_json::to_vec(metadata).ok());
    if metadata.is_some_and(|json| json.len() > MAX_METADATA) {
        wrong.say("metadata", format_args!("is longer than {MAX_METADATA} bytes as JSON"));
    }
    wrong.result()
}

/// An absolute path in a guest.
pub(crate) fn check_workdir(field: &str, path: &str) -> Result<()> {
    let mut wrong = Wrong::default();
    check_path(field, path, &mut wrong);
    wrong.result()
}

#[cfg(test)]
mod tests {
    use nullspace_api::ErrorResponseCode;
    use serde_json::{Value, json};

    use super::*;

    fn checked(request: Value) -> Result<Valid> {
        let mut request: CreateTemplateRequest = serde_json::from_value(request).unwrap();
        let secrets = request.take_secrets();
        let (valid, problems) = check(&request, &secrets);
        if problems.is_empty() { Ok(valid) } else { Err(Error::invalid(messages(&problems))) }
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
        assert_eq!(error.code, ErrorResponseCode::InvalidRequest);
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
            assert!(error.message.contains(field), "{field}: {}", error.message);
        }
    }

    #[test]
    fn numbers_beyond_their_range_are_refused_with_it() {
        for (field, low, high) in [("vcpus", 1_u64, 32_u64), ("memory_mib", 128, 65_536), ("disk_mb", 512, 1_048_576)] {
            for (value, sound) in
                [(low, true), (high, true), (low - 1, false), (high + 1, false), (4_294_967_295, false)]
            {
                let answer = checked(json!({"build_config": {field: value}}));
                let said = answer.err().map(|error| error.message).unwrap_or_default();
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
            assert!(error.message.contains(field) && error.message.contains("it must be"), "{error}");
        }
    }

    #[test]
    fn a_create_names_every_field_beyond_its_range() {
        let said = |request: Value| {
            let request: CreateSandboxRequest = serde_json::from_value(request).unwrap();
            check_create(&request).err().map(|error| error.message).unwrap_or_default()
        };
        assert_eq!(said(json!({})), "");
        assert_eq!(said(json!({"vcpus": 32, "memory_mb": 65_536, "disk_mb": 1_048_576, "timeout_ms": 86_400_000})), "");
        assert_eq!(said(json!({"vcpus": 1, "memory_mb": 128, "disk_mb": 512, "timeout_ms": 1, "cwd": "/"})), "");
        for (field, wrong, range) in [
            ("vcpus", vec![0, 33, 4_294_967_295], "1 to 32"),
            ("memory_mb", vec![0, 127, 65_537, 4_294_967_295], "128 to 65536"),
            ("disk_mb", vec![0, 511, 1_048_577, 4_294_967_295], "512 to 1048576"),
            ("timeout_ms", vec![0, 86_400_001, u64::MAX], "1 to 86400000"),
        ] {
            for value in wrong {
                let said = said(json!({ field: value }));
                assert!(said.contains(field) && said.contains(range), "{field} {value}: {said}");
            }
        }
        let all = said(
            json!({"memory_mb": 0, "disk_mb": 0, "cwd": "x", "envs": {"A=": ""}, "metadata": {"a": "x".repeat(70_000)}}),
        );
        for field in ["memory_mb", "disk_mb", "cwd", "envs", "metadata"] {
            assert!(all.contains(field), "{field}: {all}");
        }
    }

    #[test]
    fn values_of_variables_are_never_in_a_message() {
        let error = checked(json!({"build_envs": {"TOKEN": "hunter2\u{0}"}})).unwrap_err();
        assert!(error.message.contains("build_envs.TOKEN") && !error.message.contains("hunter2"), "{error}");
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
            assert_eq!(error.code, ErrorResponseCode::NotImplemented, "{text}");
        }
        let both = checked(json!({"dockerfile": "FROM scratch", "base_image": "x"})).unwrap_err();
        assert_eq!(both.code, ErrorResponseCode::InvalidRequest);
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
