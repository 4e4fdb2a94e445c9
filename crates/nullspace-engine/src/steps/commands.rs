//! Programs that the helper steps run: arguments, never a line for a shell.

use std::collections::BTreeMap;

use nullspace_api::TemplateStep;

use crate::plan::DEFAULT_WORKDIR;

/// A program to run, by one of several names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Command {
    /// The first words, in the order in which they are tried: the next when the program does not exist.
    pub(crate) programs: Vec<Vec<&'static str>>,
    /// What follows.
    pub(crate) arguments: Vec<String>,
    /// Variables, where the build has not set them itself.
    pub(crate) envs: Vec<(&'static str, &'static str)>,
}

impl Command {
    fn new(programs: &[&[&'static str]], arguments: impl IntoIterator<Item = String>) -> Command {
        let programs = programs.iter().map(|words| words.to_vec()).collect();
        Command { programs, arguments: arguments.into_iter().collect(), envs: Vec::new() }
    }

    fn env(mut self, name: &'static str, value: &'static str) -> Command {
        self.envs.push((name, value));
        self
    }

    /// Adds the variables.
    pub(crate) fn add_envs(&self, envs: &mut BTreeMap<String, String>) {
        for (name, value) in &self.envs {
            envs.entry((*name).to_owned()).or_insert_with(|| (*value).to_owned());
        }
    }
}

/// What a helper step runs, one after the other; nothing for a step that is none.
pub(crate) fn commands(step: &TemplateStep) -> Vec<Command> {
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    match step {
        TemplateStep::AptInstall(install) => {
            let arguments = words(&["install", "-y"]).into_iter().chain(install.packages.clone());
            let apt = |arguments: Vec<String>| {
                Command::new(&[&["apt-get"]], arguments).env("DEBIAN_FRONTEND", "noninteractive")
            };
            vec![apt(words(&["update"])), apt(arguments.collect())]
        }
        TemplateStep::PipInstall(install) => {
            let mut arguments = words(&["install", "--no-cache-dir"]);
            if install.g == Some(false) {
                arguments.push("--user".to_owned());
            }
            arguments.extend(install.packages.clone());
            let pip = Command::new(&[&["pip"], &["pip3"], &["python3", "-m", "pip"]], arguments)
                // The template is the environment: Debian's pip asks for another one otherwise.
                .env("PIP_BREAK_SYSTEM_PACKAGES", "1")
                .env("PIP_ROOT_USER_ACTION", "ignore")
                .env("PIP_DISABLE_PIP_VERSION_CHECK", "1");
            vec![pip]
        }
        TemplateStep::NpmInstall(install) => {
            let global = (install.g == Some(true)).then(|| "-g".to_owned());
            let arguments = words(&["install"]).into_iter().chain(global).chain(install.packages.clone());
            vec![Command::new(&[&["npm"]], arguments).env("NPM_CONFIG_UPDATE_NOTIFIER", "false")]
        }
        TemplateStep::BunInstall(install) => {
            let global = (install.g == Some(true)).then(|| "--global".to_owned());
            let arguments = words(&["add"]).into_iter().chain(global).chain(install.packages.clone());
            vec![Command::new(&[&["bun"]], arguments)]
        }
        TemplateStep::GitClone(clone) => {
            let mut arguments = words(&["clone"]);
            if let Some(branch) = &clone.branch {
                arguments.extend(["--branch".to_owned(), branch.clone()]);
            }
            if let Some(depth) = clone.depth {
                arguments.extend(["--depth".to_owned(), depth.to_string()]);
            }
            let path = clone.path.as_deref().unwrap_or(DEFAULT_WORKDIR).to_owned();
            arguments.extend(["--".to_owned(), clone.url.clone(), path]);
            // Nobody is there to answer.
            vec![Command::new(&[&["git"]], arguments).env("GIT_TERMINAL_PROMPT", "0")]
        }
        _ => Vec::new(),
    }
}

/// A URL without the credentials in it, for the log.
pub(crate) fn without_credentials(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let host_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            match rest.get(..host_end).and_then(|authority| authority.rfind('@')) {
                Some(at) => format!("{scheme}://…{}", rest.get(at..).unwrap_or_default()),
                None => url.to_owned(),
            }
        }
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn lines(step: Value) -> Vec<String> {
        let step: TemplateStep = serde_json::from_value(step).unwrap();
        let line = |command: Command| {
            let program = command.programs[0].iter().map(|&word| word.to_owned());
            program.chain(command.arguments).collect::<Vec<_>>().join("|")
        };
        commands(&step).into_iter().map(line).collect()
    }

    #[test]
    fn values_are_arguments() {
        for (step, expected) in [
            (
                json!({"action": "apt_install", "packages": ["curl", "a; rm -rf /"]}),
                vec!["apt-get|update", "apt-get|install|-y|curl|a; rm -rf /"],
            ),
            (
                json!({"action": "pip_install", "packages": ["flask>=2"], "g": false}),
                vec!["pip|install|--no-cache-dir|--user|flask>=2"],
            ),
            (json!({"action": "pip_install", "packages": ["x"]}), vec!["pip|install|--no-cache-dir|x"]),
            (json!({"action": "npm_install", "packages": ["x"], "g": true}), vec!["npm|install|-g|x"]),
            (json!({"action": "npm_install", "packages": ["x"]}), vec!["npm|install|x"]),
            (json!({"action": "bun_install", "packages": ["x"], "g": true}), vec!["bun|add|--global|x"]),
            (json!({"action": "git_clone", "url": "u"}), vec!["git|clone|--|u|/workspace"]),
            (
                json!({"action": "git_clone", "url": "u", "path": "p q", "branch": "b", "depth": 1}),
                vec!["git|clone|--branch|b|--depth|1|--|u|p q"],
            ),
            (json!({"action": "run", "command": "x"}), vec![]),
        ] {
            assert_eq!(lines(step.clone()), expected, "{step}");
        }
    }

    #[test]
    fn credentials_in_a_url_are_not_shown() {
        for (url, shown) in [
            ("https://me:token@host/a@b", "https://…@host/a@b"),
            ("https://host/a@b", "https://host/a@b"),
            ("git@host:a/b", "git@host:a/b"),
            ("https://a@b@host?x", "https://…@host?x"),
        ] {
            assert_eq!(without_credentials(url), shown);
        }
    }
}
