//! The outline of a Dockerfile, read without a build: its stages, their images, the steps of the chosen stage, and
//! instructions without effect here.
//!
//! ```text
//!   text ──parser──> instructions ──> stages: each FROM an image or an earlier stage          (outline)
//!                                       └─ target (or the last one) and what it stands on = the outline
//! ```
//! BuildKit has the last word when it builds. Errors that BuildKit would report while it reads are reported here, before a
//! build is queued. Names that only BuildKit can resolve (`unread`) are left to it. Rules about credentials are here.

mod budget;
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
/// Docker instructions without a meaning for a template: no container is stopped by a signal, no child build runs triggers,
/// ports are reachable without a declaration, and there is one disk.
const WITHOUT_EFFECT: &[&str] = &["EXPOSE", "MAINTAINER", "ONBUILD", "STOPSIGNAL", "VOLUME"];
/// Most build secrets of one request.
const MAX_SECRETS: usize = 100;

/// The outline of a Dockerfile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outline {
    /// SHA-256 of the text, hex.
    pub digest: String,
    /// The base of the chosen stage, with variables replaced: an image, a template, or `scratch`.
    pub base: String,
    /// Every external image that some stage uses, in the order of lines.
    pub images: Vec<UsedImage>,
    /// The steps of the chosen stage and of the stages below it, in order.
    pub steps: Vec<Step>,
    /// Their ENV, in order, with known variables replaced.
    pub envs: Vec<(String, String)>,
    /// ENTRYPOINT and CMD as one line, if given.
    pub start: Option<String>,
    /// The last USER, with known variables replaced.
    pub user: Option<String>,
    /// The WORKDIRs, joined, with known variables replaced.
    pub workdir: Option<String>,
    /// Instructions without effect with their lines, in the whole file.
    pub ignored: Vec<(String, u32)>,
    /// Warnings for the author, with lines.
    pub warnings: Vec<(u32, String)>,
    /// True: it uses images that only BuildKit can name.
    pub unread: bool,
    /// The frontend that the text names.
    pub syntax: Option<String>,
}

impl Outline {
    /// The registry of the only external image of a FROM.
    pub fn only_registry(&self) -> Option<String> {
        let image = self.images.iter().find(|image| image.is_from && !image.is_template())?;
        Some(image.reference.parse::<Reference>().ok()?.registry().to_owned())
    }
}

/// An external image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsedImage {
    /// Its reference, with variables replaced.
    pub reference: String,
    /// Its line.
    pub line: u32,
    /// Whether it was written with variables.
    pub variable: bool,
    /// Whether it is a FROM, and not `--from`.
    pub is_from: bool,
}

impl UsedImage {
    /// Whether it names a template of this service, not an image in a registry.
    pub fn is_template(&self) -> bool {
        self.reference.starts_with("nullspace/") || self.reference.starts_with("tmpl_")
    }
}

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The keyword, in capitals.
    pub instruction: String,
    /// Its arguments on one line, except here-documents.
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

/// Reads a Dockerfile and checks the request's settings for it.
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

/// A registry in the form of image references, from the name that users write.
pub fn registry_named(text: &str) -> &str {
    match text.trim() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    }
}

/// Checks that all credentials are for a registry that the Dockerfile pulls from.
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

/// An error of a Dockerfile.
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
