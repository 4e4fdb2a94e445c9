//! What a Dockerfile says, without building it: its stages, the images it starts from, what the chosen stage does, and
//! which instructions have no effect here.
//!
//! ```text
//!   text ──parser──> instructions ──> stages: each FROM an image or an earlier stage          (outline)
//!                                       └─ target (or the last one) and what it stands on = the outline
//! ```
//! BuildKit itself has the last word when it builds: what it refuses as it reads is refused here, before a build waits for
//! it; what cannot be told without it (`unread`) is left to it. Rules about credentials are here.

mod documents;
mod elsewhere;
mod glob;
mod instruction;
mod outline;
mod parser;
mod words;

use std::collections::{BTreeMap, BTreeSet};

use nullspace_api::{JsonObject, RequestSecrets, TemplateBaseImageAuth};
use nullspace_image_ref::Reference;
use serde_json::json;

pub use self::elsewhere::{Host, elsewhere};
use self::outline::outline;
use crate::problems::Wrong;

/// Longest Dockerfile, bytes.
const MAX_TEXT: usize = 1 << 20;
/// Instructions that Docker gives a meaning that a template has no use for: no container stops by a signal, no child
/// build runs triggers, ports are reached without being named, and the disk is all there is.
const WITHOUT_EFFECT: &[&str] = &["EXPOSE", "MAINTAINER", "ONBUILD", "STOPSIGNAL", "VOLUME"];
/// Build secrets of one request.
const MAX_SECRETS: usize = 100;

/// What a Dockerfile comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outline {
    /// SHA-256 of the text, hex.
    pub digest: String,
    /// What the chosen stage stands on, variables replaced: an image, a template, or `scratch`.
    pub base: String,
    /// Every image from elsewhere that some stage uses, in the order of lines.
    pub images: Vec<UsedImage>,
    /// What the chosen stage and those under it do, in order.
    pub steps: Vec<Step>,
    /// ENV of them, in order, variables replaced as far as they are known.
    pub envs: Vec<(String, String)>,
    /// ENTRYPOINT and CMD as one line, when there are any.
    pub start: Option<String>,
    /// The last USER, variables replaced as far as they are known.
    pub user: Option<String>,
    /// The WORKDIRs, one upon the other, variables replaced as far as they are known.
    pub workdir: Option<String>,
    /// Instructions without effect with their lines, in the whole file.
    pub ignored: Vec<(String, u32)>,
    /// What its author should know, with lines.
    pub warnings: Vec<(u32, String)>,
    /// It uses images that BuildKit alone can name.
    pub unread: bool,
    /// The frontend that the text names.
    pub syntax: Option<String>,
}

impl Outline {
    /// The registry of the one image that a FROM takes from elsewhere.
    pub fn only_registry(&self) -> Option<String> {
        let image = self.images.iter().find(|image| image.is_from && !image.is_template())?;
        Some(image.reference.parse::<Reference>().ok()?.registry().to_owned())
    }
}

/// An image from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsedImage {
    /// With variables replaced.
    pub reference: String,
    /// Where it stands.
    pub line: u32,
    /// Whether it was written with variables.
    pub variable: bool,
    /// Whether it is a FROM, and not `--from`.
    pub is_from: bool,
}

impl UsedImage {
    /// Whether it names a template of this service and not an image in a registry.
    pub fn is_template(&self) -> bool {
        self.reference.starts_with("nullspace/") || self.reference.starts_with("tmpl_")
    }
}

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The keyword, in capitals.
    pub instruction: String,
    /// What follows it, on one line but for here-documents.
    pub arguments: String,
    /// Its line, counted from 1.
    pub line: u32,
}

impl Step {
    /// As `build_steps` shows it.
    pub fn shown(&self) -> JsonObject {
        let mut object = JsonObject::new();
        object.insert("instruction".to_owned(), json!(self.instruction));
        object.insert("arguments".to_owned(), json!(self.arguments));
        object.insert("line".to_owned(), json!(self.line));
        object
    }
}

/// Reads a Dockerfile and checks what the request says about it.
pub fn check(
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
            wrong.say(&format!("build_secrets[{index}].id"), "is given twice");
        }
    }
}

/// A registry as image references name it, from what users call it.
pub fn registry_named(text: &str) -> &str {
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
        let of_frontend = || {
            let frontend = outline.syntax.as_ref()?.parse::<Reference>().ok()?;
            (frontend.registry() == host).then_some(())
        };
        if !outline.unread && !hosts.contains(host) && of_frontend().is_none() {
            wrong.say(&field, "is no registry that the Dockerfile pulls from");
        } else if !seen.insert(host) {
            wrong.say(&field, "is given twice");
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
            [] if outline.unread => {
                let what = "needs a FROM whose image is known before the build: use registry_auth";
                wrong.say("base_image_auth", what);
            }
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

#[cfg(test)]
mod tests;
