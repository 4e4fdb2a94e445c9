//! `git_clone`: a repository of git.

use nullspace_api::TemplateGitCloneStep;

use crate::encoder::Encoder;
use crate::runtime::DEFAULT_WORKDIR;
use crate::shell::quote;
use crate::steps::action::Action;
use crate::steps::checks::Check;
use crate::steps::files::Files;
use crate::steps::line::Line;
use crate::steps::task::{Command, Effect, words};

impl Action for TemplateGitCloneStep {
    fn check(&self, check: &mut Check<'_>) {
        check.word("url", &self.url);
        if let Some(path) = &self.path {
            check.word("path", path);
            check.lengths("path", path);
        }
        if let Some(branch) = &self.branch {
            check.word("branch", branch);
        }
        if self.depth == Some(0) {
            check.say("depth", "must be at least 1");
        }
    }

    fn key(&self, key: &mut Encoder, _files: &Files<'_>) {
        let TemplateGitCloneStep { url, path, branch, depth } = self;
        key.text("git_clone");
        key.text(url);
        key.option(path.as_deref());
        key.option(branch.as_deref());
        key.optional_number(*depth);
    }

    fn render(&self) -> Vec<Line> {
        let mut command = String::from("git clone");
        if let Some(branch) = &self.branch {
            command.push_str(&format!(" --branch {}", quote(branch)));
        }
        if let Some(depth) = self.depth {
            command.push_str(&format!(" --depth {depth}"));
        }
        let path = self.path.as_deref().unwrap_or(DEFAULT_WORKDIR);
        Line::run(format!("{command} {} {}", quote(&self.url), quote(path)))
    }

    fn effect(&self) -> Effect<'_> {
        let mut arguments = words(&["clone"]);
        if let Some(branch) = &self.branch {
            arguments.extend(["--branch".to_owned(), branch.clone()]);
        }
        if let Some(depth) = self.depth {
            arguments.extend(["--depth".to_owned(), depth.to_string()]);
        }
        let path = self.path.as_deref().unwrap_or(DEFAULT_WORKDIR).to_owned();
        arguments.extend(["--".to_owned(), self.url.clone(), path]);
        // Nobody is there to answer.
        Effect::Tasks(vec![Command::new(&[&["git"]], arguments).env("GIT_TERMINAL_PROMPT", "0").task()])
    }

    fn shown(&self) -> String {
        let plain = TemplateGitCloneStep { url: without_credentials(&self.url), ..self.clone() };
        let lines = plain.render();
        lines.iter().map(|line| format!("{} {}", line.instruction, line.arguments)).collect::<Vec<_>>().join("; ")
    }
}

/// A URL without the credentials in it, for the log.
fn without_credentials(url: &str) -> String {
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
    use super::*;

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
        let step =
            TemplateGitCloneStep { url: "https://me:token@host/a".into(), path: None, branch: None, depth: None };
        assert_eq!(step.shown(), "RUN git clone 'https://…@host/a' /workspace");
    }
}
