//! How steps read as a Dockerfile: for people and for comparing. Nothing is ever built from its text.

use nullspace_api::{JsonObject, TemplateCopyItem, TemplateFileMode, TemplateStep};
use serde_json::json;

use super::item;

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
    use super::*;

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
