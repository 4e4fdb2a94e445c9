//! A copy of files of the build context, in one form for all steps that copy.

use nullspace_api::{TemplateCopyItem, TemplateCopyStep, TemplateFileMode};
use serde_json::json;

use super::files::Files;
use super::line::Line;
use super::sources::{self, CopySource};
use crate::encoder::Encoder;

/// One copy: its sources and its destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy<'s> {
    /// Entries, folders or patterns of the build context.
    pub sources: &'s [String],
    /// Path in the guest.
    pub dst: &'s str,
    /// Owner of the copied files.
    pub user: Option<&'s str>,
    /// Their permissions, as the request has them.
    pub mode: Option<&'s TemplateFileMode>,
    /// True: the files are to be uploaded again.
    pub force_upload: bool,
}

impl<'s> Copy<'s> {
    /// The copy of a step that is one copy.
    pub(super) fn of_step(step: &'s TemplateCopyStep) -> Copy<'s> {
        let TemplateCopyStep { sources, dst, user, mode, force_upload } = step;
        let force_upload = *force_upload == Some(true);
        Copy { sources, dst, user: user.as_deref(), mode: mode.as_ref(), force_upload }
    }

    /// The copy of an item in a list.
    pub(super) fn of_item(item: &'s TemplateCopyItem) -> Copy<'s> {
        let TemplateCopyItem { sources, dst, user, mode, force_upload } = item;
        let force_upload = *force_upload == Some(true);
        Copy { sources, dst, user: user.as_deref(), mode: mode.as_ref(), force_upload }
    }

    /// Permission bits.
    pub fn mode_bits(&self) -> Option<u32> {
        self.mode.and_then(mode_bits)
    }

    /// The copy as a line of a Dockerfile.
    pub(super) fn line(&self) -> Line {
        let mut arguments = String::new();
        if let Some(user) = &self.user {
            arguments.push_str(&format!("--chown={user} "));
        }
        if let Some(mode) = self.mode {
            arguments.push_str(&format!("--chmod={} ", octal(mode)));
        }
        let paths: Vec<&str> = self.sources.iter().map(String::as_str).chain([self.dst]).collect();
        if paths.len() == 2 && !paths.iter().any(|path| path.contains(char::is_whitespace)) {
            arguments.push_str(&paths.join(" "));
        } else {
            arguments.push_str(&json!(paths).to_string());
        }
        Line { instruction: "COPY", arguments }
    }
}

/// Adds copies to a key. A single copy gives the same key as a list of one.
pub(super) fn encode(copies: &[Copy<'_>], key: &mut Encoder, files: &Files<'_>) {
    key.text("copy");
    key.count(copies.len());
    for copy in copies {
        // `force_upload` is in the generations of the files.
        let Copy { sources, dst, user, mode: _, force_upload: _ } = copy;
        key.text(dst);
        key.option(*user);
        key.optional_number(copy.mode_bits());
        let found: Vec<CopySource> =
            sources.iter().flat_map(|source| sources::resolve(files.context, source)).collect();
        key.count(found.len());
        found.iter().for_each(|source| files.encode(key, source));
    }
}

/// Permission bits of a checked step.
pub(super) fn mode_bits(mode: &TemplateFileMode) -> Option<u32> {
    match mode {
        TemplateFileMode::Number(bits) => Some(*bits),
        TemplateFileMode::Octal(text) => u32::from_str_radix(text.strip_prefix("0o").unwrap_or(text), 8).ok(),
    }
}

/// Permission bits as `chmod` takes them.
pub(super) fn octal(mode: &TemplateFileMode) -> String {
    match mode {
        TemplateFileMode::Number(bits) => format!("{bits:04o}"),
        TemplateFileMode::Octal(text) => text.clone(),
    }
}
