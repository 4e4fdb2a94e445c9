//! Rules that several actions share.

use nullspace_api::TemplateFileMode;

use super::copies::Copy;
use crate::context::{self, Context};
use crate::problems::Wrong;

/// Most packages or copies of one step.
const MAX_ITEMS: usize = 1_000;

/// Checks the values of one step, and reports problems under its field.
pub(super) struct Check<'w> {
    field: String,
    context: &'w Context,
    wrong: &'w mut Wrong,
}

impl<'w> Check<'w> {
    /// A check of the step that is this field of the request.
    pub(super) fn new(field: String, context: &'w Context, wrong: &'w mut Wrong) -> Check<'w> {
        Check { field, context, wrong }
    }

    /// A check of a part of this step.
    pub(super) fn within(&mut self, part: &str) -> Check<'_> {
        Check { field: format!("{}.{part}", self.field), context: self.context, wrong: &mut *self.wrong }
    }

    /// Reports a problem of a part of the step.
    pub(super) fn say(&mut self, part: &str, what: impl std::fmt::Display) {
        self.wrong.say(&format!("{}.{part}", self.field), what);
    }

    /// Checks for text that is not empty.
    pub(super) fn filled(&mut self, part: &str, text: &str) {
        if text.trim().is_empty() {
            self.say(part, "is empty");
        }
        self.wrong.text(&format!("{}.{part}", self.field), text);
    }

    /// Checks a path in the guest.
    pub(super) fn path(&mut self, part: &str, path: &str) {
        self.filled(part, path);
        self.lengths(part, path);
    }

    /// Checks the lengths of a path and of its names.
    pub(super) fn lengths(&mut self, part: &str, path: &str) {
        self.wrong.lengths(&format!("{}.{part}", self.field), path);
    }

    /// Checks an argument of a program: not empty, one line, and no option.
    pub(super) fn word(&mut self, part: &str, text: &str) {
        self.filled(part, text);
        if text.starts_with('-') {
            self.say(part, "must not start with '-'");
        }
        if text.contains(['\n', '\r']) {
            self.say(part, "must be one line");
        }
    }

    /// Checks a user, if one is given.
    pub(super) fn user(&mut self, user: Option<&str>) {
        let Some(user) = user else { return };
        self.word("user", user);
        if user.len() > 256 || user.matches(':').count() > 1 || user.chars().any(char::is_whitespace) {
            self.say("user", "must be user, uid, or one of them with :group or :gid");
        }
    }

    /// Checks permission bits, if they are given.
    pub(super) fn mode(&mut self, mode: Option<&TemplateFileMode>) {
        let field = format!("{}.mode", self.field);
        match mode {
            Some(TemplateFileMode::Octal(text)) => {
                context::octal(&field, text, self.wrong);
            }
            Some(TemplateFileMode::Number(bits)) if *bits > 0o7777 => self.say("mode", "is more than 0o7777 (4095)"),
            Some(TemplateFileMode::Number(_)) | None => {}
        }
    }

    /// Checks the length of a list.
    pub(super) fn count(&mut self, part: &str, count: usize) {
        if count == 0 || count > MAX_ITEMS {
            self.say(part, format_args!("must have 1 to {MAX_ITEMS} entries"));
        }
    }

    /// Checks names of packages.
    pub(super) fn packages(&mut self, packages: &[String]) {
        self.count("packages", packages.len());
        for package in packages.iter().take(MAX_ITEMS) {
            self.word("packages", package);
        }
    }

    /// Checks a copy of files of the build context.
    pub(super) fn copy(&mut self, copy: &Copy<'_>) {
        self.count("sources", copy.sources.len());
        self.path("dst", copy.dst);
        self.user(copy.user);
        self.mode(copy.mode);
        if copy.sources.len() > 1 && !copy.dst.ends_with('/') && copy.dst != "." {
            self.say("dst", "must end with '/' when there are several sources");
        }
        for source in copy.sources.iter().take(MAX_ITEMS) {
            self.filled("sources", source);
            if source.split('/').any(|part| part == "..") {
                self.say("sources", "contains '..'");
            } else if !self.context.has(source) {
                self.say("sources", format_args!("names '{}', which is not in build_context", source.escape_debug()));
            }
        }
    }
}
