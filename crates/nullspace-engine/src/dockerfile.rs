//! What a Dockerfile says, without building it: its stages, the images it starts from, what the chosen stage does, and
//! which instructions have no effect here.
//!
//! ```text
//!   text ──parse-dockerfile──> instructions ──> stages: each FROM an image or an earlier stage
//!                                                 └─ target (or the last one) and what it stands on = the outline
//! ```
//! The grammar is the crate's; names, variables of FROM (`ARG` before the first FROM, build_args) and the rules about
//! credentials are here. BuildKit itself has the last word when it builds.

mod elsewhere;
mod instruction;
mod lines;
mod variables;

use std::collections::{BTreeMap, BTreeSet};

use nullspace_api::{JsonObject, RequestSecrets, TemplateBaseImageAuth};
use nullspace_oci::reference::Reference;
use parse_dockerfile::{Command, Flag, Instruction};
use serde::de::IgnoredAny;
use serde_json::json;
use sha2::{Digest, Sha256};

pub(crate) use self::elsewhere::{Host, elsewhere};
use self::instruction::{arguments, command, keyword};
use self::lines::{Lines, unmarked, without_documents};
use self::variables::{assignments, expand};
use crate::validate::Wrong;

/// Longest Dockerfile, bytes.
const MAX_TEXT: usize = 1 << 20;
/// Instructions that Docker gives a meaning that a template has no use for: no container stops by a signal, no child
/// build runs triggers, ports are reached without being named, and the disk is all there is.
const WITHOUT_EFFECT: &[&str] = &["EXPOSE", "MAINTAINER", "ONBUILD", "STOPSIGNAL", "VOLUME"];
/// Build secrets of one request.
const MAX_SECRETS: usize = 100;

/// What a Dockerfile comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outline {
    /// SHA-256 of the text, hex.
    pub(crate) digest: String,
    /// What the chosen stage stands on, variables replaced: an image, a template, or `scratch`.
    pub(crate) base: String,
    /// Every image from elsewhere that some stage uses, in the order of lines.
    pub(crate) images: Vec<UsedImage>,
    /// What the chosen stage and those under it do, in order.
    pub(crate) steps: Vec<Step>,
    /// ENV of them, in order.
    pub(crate) envs: Vec<(String, String)>,
    /// ENTRYPOINT and CMD as one line, when there are any.
    pub(crate) start: Option<String>,
    /// The last USER.
    pub(crate) user: Option<String>,
    /// The WORKDIRs, one upon the other.
    pub(crate) workdir: Option<String>,
    /// Instructions without effect with their lines, in the whole file.
    pub(crate) ignored: Vec<(String, u32)>,
}

impl Outline {
    /// The registry of the one image that a FROM takes from elsewhere.
    pub(crate) fn only_registry(&self) -> Option<String> {
        let image = self.images.iter().find(|image| image.is_from && !image.is_template())?;
        Some(image.reference.parse::<Reference>().ok()?.registry().to_owned())
    }
}

/// An image from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UsedImage {
    /// With variables replaced.
    pub(crate) reference: String,
    /// Where it stands.
    pub(crate) line: u32,
    /// Whether it was written with variables.
    pub(crate) variable: bool,
    /// Whether it is a FROM, and not `--from`.
    pub(crate) is_from: bool,
}

impl UsedImage {
    /// Whether it names a template of this service and not an image in a registry.
    pub(crate) fn is_template(&self) -> bool {
        self.reference.starts_with("nullspace/") || self.reference.starts_with("tmpl_")
    }
}

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// The keyword, in capitals.
    pub(crate) instruction: String,
    /// What follows it, on one line but for here-documents.
    pub(crate) arguments: String,
    /// Its line, counted from 1.
    pub(crate) line: u32,
}

impl Step {
    /// As `build_steps` shows it.
    pub(crate) fn shown(&self) -> JsonObject {
        let mut object = JsonObject::new();
        object.insert("instruction".to_owned(), json!(self.instruction));
        object.insert("arguments".to_owned(), json!(self.arguments));
        object.insert("line".to_owned(), json!(self.line));
        object
    }
}

/// Reads a Dockerfile and checks what the request says about it.
pub(crate) fn check(
    text: &str,
    args: &BTreeMap<String, String>,
    target: Option<&str>,
    secrets: &RequestSecrets,
    wrong: &mut Wrong,
) -> Option<Outline> {
    build_secrets(secrets, wrong);
    if text.len() > MAX_TEXT {
        wrong.say("dockerfile", format_args!("is longer than {MAX_TEXT} bytes"));
        return None;
    }
    match outline(text, args, target) {
        Ok(outline) => {
            credentials(&outline, secrets, wrong);
            Some(outline)
        }
        Err(problems) => {
            for problem in problems {
                wrong.say(problem.field, problem.what);
            }
            None
        }
    }
}

fn build_secrets(secrets: &RequestSecrets, wrong: &mut Wrong) {
    let mut seen = BTreeSet::new();
    if secrets.build_secrets.len() > MAX_SECRETS {
        wrong.say("build_secrets", format_args!("has more than {MAX_SECRETS} entries"));
    }
    for (index, secret) in secrets.build_secrets.iter().enumerate().take(MAX_SECRETS) {
        let letters = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if secret.id.is_empty() || secret.id.len() > 128 || !secret.id.bytes().all(letters) {
            wrong.say(&format!("build_secrets[{index}].id"), "must be 1 to 128 letters, digits, '.', '_' and '-'");
        } else if !seen.insert(&secret.id) {
            wrong.say(&format!("build_secrets[{index}].id"), "is there twice");
        }
    }
}

/// A registry as image references name it, from what users call it.
pub(crate) fn registry_named(text: &str) -> &str {
    match text.trim() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    }
}

/// Credentials must be for something that the Dockerfile pulls.
fn credentials(outline: &Outline, secrets: &RequestSecrets, wrong: &mut Wrong) {
    let external: Vec<&UsedImage> = outline.images.iter().filter(|image| !image.is_template()).collect();
    let hosts: BTreeSet<String> = external
        .iter()
        .filter_map(|image| Some(image.reference.parse::<Reference>().ok()?.registry().to_owned()))
        .collect();
    let mut seen = BTreeSet::new();
    for (index, auth) in secrets.registry_auth.iter().enumerate() {
        let host = registry_named(&auth.registry);
        let field = format!("registry_auth[{index}].registry");
        if !hosts.contains(host) {
            wrong.say(&field, "is no registry that the Dockerfile pulls from");
        } else if !seen.insert(host) {
            wrong.say(&field, "is there twice");
        }
    }
    let auth: Option<&TemplateBaseImageAuth> = secrets.base_image_auth.as_ref();
    if auth.is_some() {
        let froms: Vec<&&UsedImage> = external.iter().filter(|image| image.is_from).collect();
        match froms.as_slice() {
            [one] if one.variable => {
                wrong.say("base_image_auth", format_args!("needs a FROM without variables (line {})", one.line));
            }
            [_] if hosts.len() > 1 => {
                wrong.say(
                    "base_image_auth",
                    "is for Dockerfiles that pull from one registry: use registry_auth for several",
                );
            }
            [_] => {}
            [] => wrong.say("base_image_auth", "needs a FROM with an image from a registry"),
            _ => wrong.say("base_image_auth", "needs exactly one FROM image: use registry_auth for several"),
        }
    }
}

/// What is wrong with a Dockerfile.
#[derive(Debug, PartialEq, Eq)]
struct Fault {
    field: &'static str,
    what: String,
}

fn fault(line: u32, what: impl std::fmt::Display) -> Fault {
    Fault { field: "dockerfile", what: format!("line {line}: {what}") }
}

struct StageOf<'t, 'p> {
    name: Option<String>,
    base: Base,
    instructions: &'p [Instruction<'t>],
}

#[derive(Clone)]
enum Base {
    Stage(usize),
    Image(String),
}

fn outline(whole: &str, args: &BTreeMap<String, String>, target: Option<&str>) -> Result<Outline, Vec<Fault>> {
    let (text, documents) = without_documents(whole).map_err(|fault| vec![fault])?;
    let lines = Lines::new(&text);
    let parsed = parse_dockerfile::parse(&text).map_err(|error| {
        let line = u32::try_from(error.line()).unwrap_or(u32::MAX).max(1);
        // With `#` the message has no place in it: ours is first, as everywhere.
        vec![fault(line, format_args!("{error:#}"))]
    })?;
    let escape = parsed.parser_directives.escape.as_ref().map_or('\\', |directive| directive.value.value);
    let mut faults: Vec<Fault> = parsed
        .instructions
        .iter()
        .filter_map(|instruction| Some(fault(lines.of(keyword(instruction).1), unsound(instruction)?)))
        .collect();
    let variables = global_variables(&parsed, args);
    let mut stages: Vec<StageOf<'_, '_>> = Vec::new();
    let mut images = Vec::new();
    for stage in parsed.stages() {
        let line = lines.of(stage.from.from.span.start);
        let written = stage.from.image.value.as_ref();
        let reference = expand(written, &variables);
        let earlier = stages.iter().rposition(|earlier| named(earlier, &reference));
        let base = match earlier {
            Some(index) => Base::Stage(index),
            None => {
                if reference != "scratch" {
                    used(&reference, line, written.contains('$'), true, &mut images, &mut faults);
                }
                Base::Image(reference)
            }
        };
        let name = stage.from.as_.as_ref().map(|(_, name)| name.value.to_lowercase());
        stages.push(StageOf { name, base, instructions: stage.instructions });
        let names: Vec<Option<String>> = stages.iter().map(|stage| stage.name.clone()).collect();
        for from in other_sources(stage.instructions) {
            let is_stage = names.iter().flatten().any(|name| *name == from.0.to_lowercase())
                || from.0.parse::<usize>().is_ok_and(|index| index < names.len());
            if !is_stage && !from.0.contains('$') {
                used(&from.0, lines.of(from.1), false, false, &mut images, &mut faults);
            }
        }
    }
    let chosen = match target {
        None => stages.len().checked_sub(1),
        Some(target) => {
            let by_name = stages.iter().rposition(|stage| named(stage, target));
            let by_index = target.parse::<usize>().ok().filter(|index| *index < stages.len());
            let found = by_name.or(by_index);
            if found.is_none() {
                let what = format!("is '{}', and no stage has that name", target.escape_debug());
                faults.push(Fault { field: "build_target", what });
            }
            found
        }
    };
    let (Some(chosen), true) = (chosen, faults.is_empty()) else { return Err(faults) };
    let mut outline = Outline {
        digest: hex::encode(Sha256::digest(whole.as_bytes())),
        base: String::new(),
        images,
        steps: Vec::new(),
        envs: Vec::new(),
        start: None,
        user: None,
        workdir: None,
        ignored: Vec::new(),
    };
    let mut chain = vec![chosen];
    let mut at = chosen;
    loop {
        match stages.get(at).map(|stage| stage.base.clone()) {
            Some(Base::Stage(under)) => {
                chain.push(under);
                at = under;
            }
            Some(Base::Image(image)) => {
                outline.base = image;
                break;
            }
            None => break,
        }
    }
    for stage in chain.iter().rev().filter_map(|index| stages.get(*index)) {
        outline.stage(stage.instructions, &lines, escape);
    }
    for step in &mut outline.steps {
        if let Some(document) = documents.get(&step.line) {
            step.arguments.push_str(document);
        }
    }
    outline.unmark();
    for instruction in &parsed.instructions {
        let (keyword, at) = keyword(instruction);
        if WITHOUT_EFFECT.contains(&keyword) {
            outline.ignored.push((keyword.to_owned(), lines.of(at)));
        }
    }
    Ok(outline)
}

/// What the grammar lets through and Docker refuses.
fn unsound(instruction: &Instruction<'_>) -> Option<&'static str> {
    match instruction {
        Instruction::Env(env) => {
            let text = env.arguments.value.trim();
            let named = text.contains('=') || text.contains(char::is_whitespace);
            (!named).then_some("ENV needs a name and a value")
        }
        Instruction::Onbuild(onbuild) => match *onbuild.instruction {
            Instruction::From(_) | Instruction::Onbuild(_) | Instruction::Maintainer(_) => {
                Some("ONBUILD cannot be followed by FROM, ONBUILD or MAINTAINER")
            }
            _ => None,
        },
        Instruction::Run(run) => mixed(&run.arguments),
        Instruction::Cmd(cmd) => mixed(&cmd.arguments),
        Instruction::Entrypoint(entrypoint) => mixed(&entrypoint.arguments),
        _ => None,
    }
}

/// A JSON array that does not hold strings only is no exec form, and is not taken for a shell's line either.
fn mixed(command: &Command<'_>) -> Option<&'static str> {
    let Command::Shell(text) = command else { return None };
    let array = text.value.trim_start().starts_with('[') && serde_json::from_str::<Vec<IgnoredAny>>(text.value).is_ok();
    array.then_some("an array of a command's words must hold strings only")
}

fn named(stage: &StageOf<'_, '_>, name: &str) -> bool {
    stage.name.as_ref().is_some_and(|stage| *stage == name.to_lowercase())
}

fn used(
    reference: &str,
    line: u32,
    variable: bool,
    is_from: bool,
    images: &mut Vec<UsedImage>,
    faults: &mut Vec<Fault>,
) {
    let image = UsedImage { reference: reference.to_owned(), line, variable, is_from };
    if reference.is_empty() {
        faults.push(fault(line, "the image's name is empty: a variable in it has no value (give build_args)"));
    } else if !image.is_template()
        && let Err(error) = reference.parse::<Reference>()
    {
        faults.push(fault(line, format_args!("'{}' is no image: {error}", reference.escape_debug())));
    } else {
        images.push(image);
    }
}

/// `--from` of COPY and of RUN's mounts, with where they stand.
fn other_sources(instructions: &[Instruction<'_>]) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    let named = |flag: &Flag<'_>, name: &str| flag.name.value.trim_start_matches('-') == name;
    for instruction in instructions {
        let (_, at) = keyword(instruction);
        match instruction {
            Instruction::Copy(copy) => {
                let from = copy.options.iter().filter(|flag| named(flag, "from"));
                found.extend(from.filter_map(|flag| Some((flag.value.as_ref()?.value.to_string(), at))));
            }
            Instruction::Run(run) => {
                for mount in run.options.iter().filter(|flag| named(flag, "mount")) {
                    let text = mount.value.as_ref().map(|value| value.value.to_string()).unwrap_or_default();
                    let from = text.split(',').find_map(|part| part.strip_prefix("from="));
                    found.extend(from.map(|from| (from.to_owned(), at)));
                }
            }
            _ => {}
        }
    }
    found
}

/// Variables that FROM may use: `ARG` before the first FROM, with build_args over their defaults, and the platform's.
fn global_variables(
    parsed: &parse_dockerfile::Dockerfile<'_>,
    args: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let mut variables = BTreeMap::new();
    for side in ["TARGET", "BUILD"] {
        variables.insert(format!("{side}OS"), "linux".to_owned());
        variables.insert(format!("{side}ARCH"), arch.to_owned());
        variables.insert(format!("{side}PLATFORM"), format!("linux/{arch}"));
    }
    for arg in parsed.global_args() {
        for (name, default) in assignments(&arg.arguments.value) {
            let default = default.map(|text| expand(&text, &variables));
            if let Some(value) = args.get(&name).cloned().or(default) {
                variables.insert(name, value);
            }
        }
    }
    variables
}

impl Outline {
    /// Takes the marks out that its text was read with.
    fn unmark(&mut self) {
        let steps = self.steps.iter_mut().map(|step| &mut step.arguments);
        let envs = self.envs.iter_mut().map(|(_, value)| value);
        let one = [&mut self.start, &mut self.user, &mut self.workdir].into_iter().flatten();
        steps.chain(envs).chain(one).for_each(unmarked);
    }

    fn stage(&mut self, instructions: &[Instruction<'_>], lines: &Lines, escape: char) {
        // CMD means something only with the ENTRYPOINT above it; a new ENTRYPOINT drops the CMD before it.
        let (mut entrypoint, mut cmd): (Option<String>, Option<String>) = (None, None);
        for instruction in instructions {
            let (keyword, at) = keyword(instruction);
            let arguments = arguments(instruction, escape);
            match instruction {
                Instruction::Env(env) => {
                    let text = env.arguments.value.as_ref();
                    let pairs = assignments(text);
                    if pairs.first().is_some_and(|(_, value)| value.is_none()) {
                        let (name, value) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
                        self.envs.push((name.to_owned(), value.trim().to_owned()));
                    } else {
                        self.envs.extend(pairs.into_iter().map(|(name, value)| (name, value.unwrap_or_default())));
                    }
                }
                Instruction::User(user) => self.user = Some(user.arguments.value.to_string()),
                Instruction::Workdir(workdir) => {
                    let path = workdir.arguments.value.as_ref();
                    self.workdir = Some(match &self.workdir {
                        Some(before) if !path.starts_with('/') => format!("{}/{path}", before.trim_end_matches('/')),
                        None if !path.starts_with('/') => format!("/{path}"),
                        _ => path.to_owned(),
                    });
                }
                Instruction::Entrypoint(line) => {
                    entrypoint = Some(command(&line.arguments, escape));
                    cmd = None;
                }
                Instruction::Cmd(line) => cmd = Some(command(&line.arguments, escape)),
                _ => {}
            }
            self.steps.push(Step { instruction: keyword.to_owned(), arguments, line: lines.of(at) });
        }
        let start: Vec<String> = entrypoint.into_iter().chain(cmd).filter(|line| !line.is_empty()).collect();
        if !start.is_empty() {
            self.start = Some(start.join(" "));
        }
    }
}

#[cfg(test)]
#[path = "dockerfile_tests.rs"]
mod tests;
