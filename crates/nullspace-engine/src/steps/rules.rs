//! What a request's steps must be like.

use nullspace_api::{TemplateCopyItem, TemplateFileMode, TemplateStep};

use super::sources;
use crate::context::{self, Context};
use crate::validate::Wrong;

/// Steps of one request.
const MAX_STEPS: usize = 1_000;
/// Packages or copies of one step.
const MAX_ITEMS: usize = 1_000;
/// Patterns among the sources of one request: each is held against every entry of the context.
const MAX_PATTERNS: usize = 100;

/// Checks every step.
pub(crate) fn check(steps: &[TemplateStep], context: &Context, wrong: &mut Wrong) {
    if steps.len() > MAX_STEPS {
        wrong.say("steps", format_args!("has more than {MAX_STEPS} entries"));
        return;
    }
    let is_pattern = |source: &&String| sources::is_pattern(source);
    let patterns_of = |item: &TemplateCopyItem| item.sources.iter().filter(is_pattern).count();
    let patterns: usize = steps.iter().map(|step| super::copies(step).iter().map(patterns_of).sum::<usize>()).sum();
    if patterns > MAX_PATTERNS {
        wrong.say("steps", format_args!("has more than {MAX_PATTERNS} patterns among its sources"));
        return;
    }
    for (index, step) in steps.iter().enumerate() {
        let mut check = Check { field: format!("steps[{index}]"), wrong };
        match step {
            TemplateStep::Run(run) => {
                check.filled("command", &run.command);
                check.user(run.user.as_deref());
            }
            TemplateStep::Copy(copy) => check.copy(&super::item(copy), context),
            TemplateStep::CopyItems(copies) => {
                check.count("items", copies.items.len());
                for (index, item) in copies.items.iter().enumerate() {
                    Check { field: format!("{}.items[{index}]", check.field), wrong: &mut *check.wrong }
                        .copy(item, context);
                }
            }
            TemplateStep::AptInstall(install) => check.packages(&install.packages),
            TemplateStep::PipInstall(install) => check.packages(&install.packages),
            TemplateStep::NpmInstall(install) => check.packages(&install.packages),
            TemplateStep::BunInstall(install) => check.packages(&install.packages),
            TemplateStep::GitClone(clone) => {
                check.word("url", &clone.url);
                if let Some(path) = &clone.path {
                    check.word("path", path);
                    check.lengths("path", path);
                }
                if let Some(branch) = &clone.branch {
                    check.word("branch", branch);
                }
                if clone.depth == Some(0) {
                    check.say("depth", "must be at least 1");
                }
            }
            TemplateStep::Workdir(workdir) => check.path("path", &workdir.path),
            TemplateStep::User(user) => check.user(Some(&user.user)),
            TemplateStep::MakeDir(make) => {
                check.path("path", &make.path);
                check.mode(make.mode.as_ref());
            }
            TemplateStep::MakeSymlink(link) => {
                check.path("target", &link.target);
                check.path("path", &link.path);
            }
            TemplateStep::Remove(remove) => {
                check.path("path", &remove.path);
                if remove.path.split('/').all(|part| part.is_empty() || part == ".") && remove.path.starts_with('/') {
                    check.say("path", "is the whole root: name what is to go");
                }
            }
            TemplateStep::Rename(rename) => {
                check.path("src", &rename.src);
                check.path("dst", &rename.dst);
            }
            TemplateStep::SkipCache(_) => {}
        }
    }
}

struct Check<'w> {
    field: String,
    wrong: &'w mut Wrong,
}

impl Check<'_> {
    fn say(&mut self, part: &str, what: impl std::fmt::Display) {
        self.wrong.say(&format!("{}.{part}", self.field), what);
    }

    fn filled(&mut self, part: &str, text: &str) {
        if text.trim().is_empty() {
            self.say(part, "is empty");
        }
        self.wrong.text(&format!("{}.{part}", self.field), text);
    }

    /// A path in the guest.
    fn path(&mut self, part: &str, path: &str) {
        self.filled(part, path);
        self.lengths(part, path);
    }

    fn lengths(&mut self, part: &str, path: &str) {
        self.wrong.lengths(&format!("{}.{part}", self.field), path);
    }

    /// An argument of a program: not empty, one line, and no option.
    fn word(&mut self, part: &str, text: &str) {
        self.filled(part, text);
        if text.starts_with('-') {
            self.say(part, "must not start with '-'");
        }
        if text.contains(['\n', '\r']) {
            self.say(part, "must be one line");
        }
    }

    fn user(&mut self, user: Option<&str>) {
        let Some(user) = user else { return };
        self.word("user", user);
        if user.len() > 256 || user.matches(':').count() > 1 || user.chars().any(char::is_whitespace) {
            self.say("user", "must be user, uid, or one of them with :group or :gid");
        }
    }

    fn mode(&mut self, mode: Option<&TemplateFileMode>) {
        let field = format!("{}.mode", self.field);
        match mode {
            Some(TemplateFileMode::Octal(text)) => {
                context::octal(&field, text, self.wrong);
            }
            Some(TemplateFileMode::Number(bits)) if *bits > 0o7777 => self.say("mode", "is more than 0o7777 (4095)"),
            Some(TemplateFileMode::Number(_)) | None => {}
        }
    }

    fn count(&mut self, part: &str, count: usize) {
        if count == 0 || count > MAX_ITEMS {
            self.say(part, format_args!("must have 1 to {MAX_ITEMS} entries"));
        }
    }

    fn packages(&mut self, packages: &[String]) {
        self.count("packages", packages.len());
        for package in packages.iter().take(MAX_ITEMS) {
            self.word("packages", package);
        }
    }

    fn copy(&mut self, item: &TemplateCopyItem, context: &Context) {
        self.count("sources", item.sources.len());
        self.path("dst", &item.dst);
        self.user(item.user.as_deref());
        self.mode(item.mode.as_ref());
        if item.sources.len() > 1 && !item.dst.ends_with('/') && item.dst != "." {
            self.say("dst", "must end with '/' when there are several sources");
        }
        for source in item.sources.iter().take(MAX_ITEMS) {
            self.filled("sources", source);
            if source.split('/').any(|part| part == "..") {
                self.say("sources", "contains '..'");
            } else if !context.has(source) {
                self.say("sources", format_args!("names '{}', which is not in build_context", source.escape_debug()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn problems(steps: Value) -> String {
        let steps: Vec<TemplateStep> = serde_json::from_value(steps).unwrap();
        let mut wrong = Wrong::default();
        check(&steps, &Context::default(), &mut wrong);
        wrong.into_message()
    }

    #[test]
    fn every_step_has_its_rules() {
        for (step, what) in [
            (json!({"action": "run", "command": " "}), "steps[0].command is empty"),
            (json!({"action": "run", "command": "x", "user": "a b"}), "steps[0].user"),
            (json!({"action": "copy", "sources": [], "dst": "/x"}), "steps[0].sources must have"),
            (json!({"action": "copy", "sources": ["a"], "dst": "/x"}), "not in build_context"),
            (json!({"action": "copy", "sources": ["../a"], "dst": "/x"}), "contains '..'"),
            (json!({"action": "copy", "sources": ["."], "dst": ""}), "steps[0].dst is empty"),
            (json!({"action": "copy", "sources": [".", "*"], "dst": "/x"}), "must end with '/'"),
            (json!({"action": "copy", "sources": ["."], "dst": "/x", "mode": "9"}), "steps[0].mode"),
            (json!({"action": "copy_items", "items": []}), "steps[0].items must have"),
            (json!({"action": "copy_items", "items": [{"sources": ["a"], "dst": "b"}]}), "steps[0].items[0].sources"),
            (json!({"action": "apt_install", "packages": ["--option"]}), "must not start with '-'"),
            (json!({"action": "pip_install", "packages": []}), "steps[0].packages must have"),
            (json!({"action": "git_clone", "url": "--upload-pack=x"}), "must not start with '-'"),
            (json!({"action": "git_clone", "url": "x", "depth": 0}), "steps[0].depth"),
            (json!({"action": "workdir", "path": ""}), "steps[0].path is empty"),
            (json!({"action": "make_dir", "path": "/x", "mode": 8000}), "steps[0].mode is more"),
            (json!({"action": "make_dir", "path": format!("/{}", "x".repeat(256))}), "steps[0].path has a name of 256"),
            (json!({"action": "workdir", "path": "x/".repeat(2100)}), "steps[0].path is longer than 4095"),
            (json!({"action": "copy", "sources": ["."], "dst": "x".repeat(300)}), "steps[0].dst has a name of 300"),
            (json!({"action": "make_symlink", "path": "/x", "target": "x".repeat(300)}), "steps[0].target has a name"),
            (json!({"action": "git_clone", "url": "u", "path": "x".repeat(300)}), "steps[0].path has a name of 300"),
            (json!({"action": "remove", "path": "/./"}), "is the whole root"),
            (json!({"action": "rename", "src": "a", "dst": "\u{0}"}), "NUL"),
        ] {
            let said = problems(json!([step.clone()]));
            assert!(said.contains(what), "{step}: {said}");
        }
        assert_eq!(problems(json!([{"action": "skip_cache"}, {"action": "run", "command": "true"}])), "");
    }
}
