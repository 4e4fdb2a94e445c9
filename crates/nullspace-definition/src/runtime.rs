//! Runtime settings of a template's sandboxes: the source's defaults, overridden by the request.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::readiness::Readiness;
use crate::shell;

/// Workdir of a template that names none; it exists in every guest.
pub const DEFAULT_WORKDIR: &str = "/workspace";

/// The request's runtime settings. `None`: as the source has them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeWish {
    /// User of start command and execs.
    pub user: Option<String>,
    /// Their working directory.
    pub workdir: Option<String>,
    /// Variables of building, start command, sandboxes and child templates.
    pub envs: BTreeMap<String, String>,
    /// When the start command counts as ready.
    pub readiness: Option<Readiness>,
}

/// Runtime settings of a template's sandboxes. Stored with the artifact, with the values of variables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    /// Variables.
    pub envs: BTreeMap<String, String>,
    /// User; `None` is root.
    pub user: Option<String>,
    /// Working directory.
    pub workdir: String,
    /// The command that ran when the machine was snapshotted.
    pub start: Option<StartCommand>,
    /// Its readiness check.
    pub readiness: Option<Readiness>,
    /// A line for `sh -c` that every sandbox runs first when it is resumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<String>,
}

impl Default for Runtime {
    fn default() -> Self {
        Runtime {
            envs: BTreeMap::new(),
            user: None,
            workdir: DEFAULT_WORKDIR.to_owned(),
            start: None,
            readiness: None,
            resume: None,
        }
    }
}

/// A start command, in its shown and its executed form. An image's own ENTRYPOINT and CMD run without a shell, because the
/// image may have none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartCommand {
    /// As `runtime_defaults.start_cmd` shows it.
    pub shown: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Its working directory, if it is not the default one. The own command of an image without a working directory starts in
    /// `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<String>,
    /// Whether it is the first process of its own PID namespace, like a container's command. True for an image's own command
    /// and for an init system.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub first: bool,
}

/// Programs that only work as PID 1.
const INITS: [&str; 8] = [
    "/init",
    "/sbin/init",
    "/usr/sbin/init",
    "/bin/init",
    "/bin/systemd",
    "/usr/bin/systemd",
    "/lib/systemd/systemd",
    "/usr/lib/systemd/systemd",
];

impl StartCommand {
    /// A line for `sh -c`. A line that has only an init system and its arguments replaces the shell by `exec`.
    pub fn shell(line: &str) -> Self {
        let plain = line.trim();
        let plain = plain.strip_prefix("exec ").unwrap_or(plain).trim();
        let word = plain.split_whitespace().next().unwrap_or_default();
        let first = INITS.contains(&word) && !plain.contains([';', '&', '|', '\n', '`', '$', '(', '<', '>']);
        let run = if first { format!("exec {plain}") } else { line.to_owned() };
        StartCommand { shown: line.to_owned(), argv: vec!["sh".to_owned(), "-c".to_owned(), run], dir: None, first }
    }

    /// ENTRYPOINT and CMD joined, escaped for display; `None` when both are empty.
    pub fn of_image(entrypoint: &[String], cmd: &[String]) -> Option<Self> {
        let argv: Vec<String> = entrypoint.iter().chain(cmd).cloned().collect();
        if argv.is_empty() {
            return None;
        }
        let shown = shell::line(&argv);
        Some(StartCommand { shown, argv, dir: None, first: true })
    }
}

impl Runtime {
    /// Sets another working directory, for the start command too.
    pub fn set_workdir(&mut self, workdir: &str) {
        self.workdir = workdir.to_owned();
        if let Some(start) = &mut self.start {
            start.dir = None;
        }
    }

    /// Merges the source's settings with the request's: variables one by one, all others as a whole.
    pub fn with(mut self, start_cmd: Option<&str>, resume_cmd: Option<&str>, wish: &RuntimeWish) -> Runtime {
        self.envs.extend(wish.envs.clone());
        if let Some(user) = &wish.user {
            self.user = Some(user.clone());
        }
        if let Some(workdir) = &wish.workdir {
            self.set_workdir(workdir);
        }
        if let Some(line) = start_cmd {
            // The source's readiness and resume command were about the source's start command.
            self.start = Some(StartCommand::shell(line));
            (self.readiness, self.resume) = (None, None);
        }
        if let Some(line) = resume_cmd {
            self.resume = Some(line.to_owned());
        }
        if let Some(readiness) = &wish.readiness {
            self.readiness = Some(readiness.clone());
        }
        self
    }

    /// The settings for the API: the keys of variables, never values.
    pub fn shown(&self) -> nullspace_api::TemplateRuntimeDefaults {
        nullspace_api::TemplateRuntimeDefaults {
            default_env_keys: self.envs.keys().cloned().collect(),
            start_cmd: self.start.as_ref().map(|start| start.shown.clone()),
            default_user: self.user.clone(),
            default_workdir: Some(self.workdir.clone()),
            readiness: self.readiness.as_ref().map(Readiness::shown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readiness::Timing;

    #[test]
    fn entrypoint_and_cmd_are_joined_and_escaped_for_show_only() {
        let words = |text: &[&str]| text.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let start = StartCommand::of_image(&words(&["/bin/it's"]), &words(&["a b", "-x=1", ""])).unwrap();
        assert_eq!(start.shown, r"'/bin/it'\''s' 'a b' -x=1 ''");
        assert_eq!(start.argv.len(), 4);
        assert_eq!(StartCommand::of_image(&[], &[]), None);
    }

    #[test]
    fn an_images_command_and_an_init_system_are_the_first_process_of_their_own() {
        assert!(StartCommand::of_image(&["/entrypoint.sh".to_owned()], &[]).unwrap().first);
        for (line, run) in [
            ("/init", "exec /init"),
            ("/sbin/init --log-level=info", "exec /sbin/init --log-level=info"),
            ("exec /lib/systemd/systemd", "exec /lib/systemd/systemd"),
            (" exec  /init ", "exec /init"),
        ] {
            let start = StartCommand::shell(line);
            assert_eq!((start.first, start.argv[2].as_str(), start.shown.as_str()), (true, run, line));
        }
        for line in ["nginx", "/init & sleep 1", "cd /app; /init", "echo /init", "/init2", "/sbin/init | tee log", ""] {
            let start = StartCommand::shell(line);
            assert_eq!((start.first, start.argv[2].as_str()), (false, line), "{line}");
        }
    }

    #[test]
    fn a_working_directory_that_is_named_holds_for_the_start_command_too() {
        let start =
            StartCommand { dir: Some("/".into()), ..StartCommand::of_image(&["/app".to_owned()], &[]).unwrap() };
        let image = Runtime { start: Some(start), ..Runtime::default() };
        let dir = |runtime: &Runtime| runtime.start.as_ref().and_then(|start| start.dir.clone());
        assert_eq!(dir(&image.clone().with(None, None, &RuntimeWish::default())).as_deref(), Some("/"));
        let wish = RuntimeWish { workdir: Some("/srv".into()), ..RuntimeWish::default() };
        let named = image.with(None, None, &wish);
        assert_eq!((dir(&named), named.workdir.as_str()), (None, "/srv"));
    }

    #[test]
    fn a_child_inherits_what_it_does_not_give_and_its_own_start_command_drops_the_parents_readiness() {
        let parent = Runtime {
            envs: BTreeMap::from([("A".into(), "1".into()), ("B".into(), "2".into())]),
            user: Some("app".into()),
            start: Some(StartCommand::shell("serve")),
            readiness: Some(Readiness::Tcp { port: 80, timing: Timing::default() }),
            resume: Some("renew".into()),
            ..Runtime::default()
        };
        let same = parent.clone().with(None, None, &RuntimeWish::default());
        assert_eq!(same, parent);

        let wish = RuntimeWish { envs: BTreeMap::from([("B".into(), "3".into())]), ..RuntimeWish::default() };
        let child = parent.clone().with(None, Some("renew differently"), &wish);
        assert_eq!((child.start, child.resume.as_deref()), (parent.start.clone(), Some("renew differently")));
        let child = parent.with(Some("other"), None, &wish);
        assert_eq!(child.resume, None, "it was about the parent's start command");
        assert_eq!(child.envs, BTreeMap::from([("A".into(), "1".into()), ("B".into(), "3".into())]));
        assert_eq!(child.user.as_deref(), Some("app"));
        assert_eq!(child.start, Some(StartCommand::shell("other")));
        assert_eq!(child.readiness, None);
        assert_eq!(child.shown().default_env_keys, ["A", "B"]);
    }
}
