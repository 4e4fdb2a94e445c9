//! Declarative steps: their rules, and how they read as a Dockerfile.
//!
//! The rendering is for people and for comparing; nothing is ever built from its text.

use nullspace_api::{JsonObject, TemplateCopyItem, TemplateCopyStep, TemplateFileMode, TemplateStep};
use serde_json::json;

use crate::context::{self, Context};
use crate::validate::Wrong;

/// Steps of one request.
const MAX_STEPS: usize = 1_000;
/// Packages or copies of one step.
const MAX_ITEMS: usize = 1_000;

/// Checks every step.
pub(crate) fn check(steps: &[TemplateStep], context: &Context, wrong: &mut Wrong) {
    if steps.len() > MAX_STEPS {
        wrong.say("steps", format_args!("has more than {MAX_STEPS} entries"));
        return;
    }
    for (index, step) in steps.iter().enumerate() {
        let mut check = Check { field: format!("steps[{index}]"), wrong };
        match step {
            TemplateStep::Run(run) => {
                check.filled("command", &run.command);
                check.user(run.user.as_deref());
            }
            TemplateStep::Copy(copy) => check.copy(&item(copy), context),
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
                }
                if let Some(branch) = &clone.branch {
                    check.word("branch", branch);
                }
                if clone.depth == Some(0) {
                    check.say("depth", "must be at least 1");
                }
            }
            TemplateStep::Workdir(workdir) => check.filled("path", &workdir.path),
            TemplateStep::User(user) => check.user(Some(&user.user)),
            TemplateStep::MakeDir(make) => {
                check.filled("path", &make.path);
                check.mode(make.mode.as_ref());
            }
            TemplateStep::MakeSymlink(link) => {
                check.filled("target", &link.target);
                check.filled("path", &link.path);
            }
            TemplateStep::Remove(remove) => {
                check.filled("path", &remove.path);
                if remove.path.split('/').all(|part| part.is_empty() || part == ".") && remove.path.starts_with('/') {
                    check.say("path", "is the whole root: name what is to go");
                }
            }
            TemplateStep::Rename(rename) => {
                check.filled("src", &rename.src);
                check.filled("dst", &rename.dst);
            }
            TemplateStep::SkipCache(_) => {}
        }
    }
}

fn item(copy: &TemplateCopyStep) -> TemplateCopyItem {
    TemplateCopyItem {
        sources: copy.sources.clone(),
        dst: copy.dst.clone(),
        user: copy.user.clone(),
        mode: copy.mode.clone(),
        force_upload: copy.force_upload,
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
        self.filled("dst", &item.dst);
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

/// One line of a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// The keyword.
    pub(crate) instruction: &'static str,
    /// What follows it.
    pub(crate) arguments: String,
}

impl Line {
    /// As `build_steps` shows it.
    pub(crate) fn shown(&self) -> JsonObject {
        let mut object = JsonObject::new();
        object.insert("instruction".to_owned(), json!(self.instruction));
        object.insert("arguments".to_owned(), json!(self.arguments));
        object
    }
}

/// The lines that say what a step does; none for a cache boundary.
pub(crate) fn render(step: &TemplateStep) -> Vec<Line> {
    let run = |arguments: String| vec![Line { instruction: "RUN", arguments }];
    match step {
        TemplateStep::Run(step) => match &step.user {
            None => run(step.command.clone()),
            Some(user) => run(format!("su -s /bin/sh -c {} {}", quoted(&step.command), quoted(user))),
        },
        TemplateStep::Copy(step) => vec![copy_line(&item(step))],
        TemplateStep::CopyItems(step) => step.items.iter().map(copy_line).collect(),
        TemplateStep::AptInstall(step) => run(format!(
            "apt-get update && apt-get install -y {} && rm -rf /var/lib/apt/lists/*",
            words(&step.packages)
        )),
        TemplateStep::PipInstall(step) => {
            let user = if step.g == Some(false) { "--user " } else { "" };
            run(format!("pip install {user}--no-cache-dir {}", words(&step.packages)))
        }
        TemplateStep::NpmInstall(step) => {
            let global = if step.g == Some(true) { "-g " } else { "" };
            run(format!("npm install {global}{}", words(&step.packages)))
        }
        TemplateStep::BunInstall(step) => {
            let global = if step.g == Some(true) { "--global " } else { "" };
            run(format!("bun add {global}{}", words(&step.packages)))
        }
        TemplateStep::GitClone(step) => {
            let mut command = String::from("git clone");
            if let Some(branch) = &step.branch {
                command.push_str(&format!(" --branch {}", quoted(branch)));
            }
            if let Some(depth) = step.depth {
                command.push_str(&format!(" --depth {depth}"));
            }
            let path = step.path.as_deref().unwrap_or(crate::plan::DEFAULT_WORKDIR);
            run(format!("{command} {} {}", quoted(&step.url), quoted(path)))
        }
        TemplateStep::Workdir(step) => vec![Line { instruction: "WORKDIR", arguments: step.path.clone() }],
        TemplateStep::User(step) => vec![Line { instruction: "USER", arguments: step.user.clone() }],
        TemplateStep::MakeDir(step) => {
            let path = quoted(&step.path);
            match &step.mode {
                None => run(format!("mkdir -p {path}")),
                Some(mode) => run(format!("mkdir -p {path} && chmod {} {path}", octal(mode))),
            }
        }
        TemplateStep::MakeSymlink(step) => run(format!("ln -s {} {}", quoted(&step.target), quoted(&step.path))),
        TemplateStep::Remove(step) => {
            let flags = match (step.recursive.unwrap_or(false), step.force.unwrap_or(false)) {
                (false, false) => "",
                (true, false) => "-r ",
                (false, true) => "-f ",
                (true, true) => "-rf ",
            };
            run(format!("rm {flags}{}", quoted(&step.path)))
        }
        TemplateStep::Rename(step) => {
            let force = if step.force == Some(true) { "-f " } else { "" };
            run(format!("mv {force}{} {}", quoted(&step.src), quoted(&step.dst)))
        }
        TemplateStep::SkipCache(_) => Vec::new(),
    }
}

fn copy_line(item: &TemplateCopyItem) -> Line {
    let mut arguments = String::new();
    if let Some(user) = &item.user {
        arguments.push_str(&format!("--chown={user} "));
    }
    if let Some(mode) = &item.mode {
        arguments.push_str(&format!("--chmod={} ", octal(mode)));
    }
    let paths: Vec<&str> = item.sources.iter().chain([&item.dst]).map(String::as_str).collect();
    if paths.len() == 2 && !paths.iter().any(|path| path.contains(char::is_whitespace)) {
        arguments.push_str(&paths.join(" "));
    } else {
        arguments.push_str(&json!(paths).to_string());
    }
    Line { instruction: "COPY", arguments }
}

fn octal(mode: &TemplateFileMode) -> String {
    match mode {
        TemplateFileMode::Number(bits) => format!("{bits:04o}"),
        TemplateFileMode::Octal(text) => text.clone(),
    }
}

fn words(words: &[String]) -> String {
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    crate::plan::quote(word)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

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
            (json!({"action": "remove", "path": "/./"}), "is the whole root"),
            (json!({"action": "rename", "src": "a", "dst": "\u{0}"}), "NUL"),
        ] {
            let said = problems(json!([step.clone()]));
            assert!(said.contains(what), "{step}: {said}");
        }
        assert_eq!(problems(json!([{"action": "skip_cache"}, {"action": "run", "command": "true"}])), "");
    }

    #[test]
    fn steps_read_as_a_dockerfile() {
        for (step, lines) in [
            (json!({"action": "run", "command": "make"}), vec!["RUN make"]),
            (json!({"action": "run", "command": "it's", "user": "app"}), vec![r"RUN su -s /bin/sh -c 'it'\''s' app"]),
            (
                json!({"action": "copy", "sources": ["a"], "dst": "/b", "user": "app", "mode": 420}),
                vec!["COPY --chown=app --chmod=0644 a /b"],
            ),
            (json!({"action": "copy", "sources": ["a b"], "dst": "/b"}), vec![r#"COPY ["a b","/b"]"#]),
            (
                json!({"action": "copy_items", "items": [{"sources": ["a"], "dst": "b"}, {"sources": ["c"], "dst": "d"}]}),
                vec!["COPY a b", "COPY c d"],
            ),
            (
                json!({"action": "apt_install", "packages": ["curl", "git"]}),
                vec!["RUN apt-get update && apt-get install -y curl git && rm -rf /var/lib/apt/lists/*"],
            ),
            (
                json!({"action": "pip_install", "packages": ["flask>=2"], "g": false}),
                vec!["RUN pip install --user --no-cache-dir 'flask>=2'"],
            ),
            (json!({"action": "npm_install", "packages": ["x"], "g": true}), vec!["RUN npm install -g x"]),
            (json!({"action": "bun_install", "packages": ["x"]}), vec!["RUN bun add x"]),
            (
                json!({"action": "git_clone", "url": "https://h/r", "branch": "b", "depth": 1}),
                vec!["RUN git clone --branch b --depth 1 https://h/r /workspace"],
            ),
            (json!({"action": "workdir", "path": "/w"}), vec!["WORKDIR /w"]),
            (json!({"action": "user", "user": "app"}), vec!["USER app"]),
            (json!({"action": "make_dir", "path": "/d", "mode": "0700"}), vec!["RUN mkdir -p /d && chmod 0700 /d"]),
            (json!({"action": "make_symlink", "target": "/a", "path": "/b"}), vec!["RUN ln -s /a /b"]),
            (json!({"action": "remove", "path": "/a", "recursive": true, "force": true}), vec!["RUN rm -rf /a"]),
            (json!({"action": "rename", "src": "/a", "dst": "/b", "force": true}), vec!["RUN mv -f /a /b"]),
            (json!({"action": "skip_cache"}), vec![]),
        ] {
            let parsed: TemplateStep = serde_json::from_value(step.clone()).unwrap();
            let shown: Vec<String> =
                render(&parsed).iter().map(|line| format!("{} {}", line.instruction, line.arguments)).collect();
            assert_eq!(shown, lines, "{step}");
        }
    }
}
