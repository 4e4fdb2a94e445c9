//! What is to be built: the request after validation, normalised, without secrets. It is what the database keeps of a
//! definition and all that a worker needs, on whichever host.

use std::collections::BTreeMap;

use nullspace_api::{
    CommandReadinessProbe, HttpReadinessProbe, TcpReadinessProbe, TemplateReadinessProbe, TemplateStep,
    TimeoutReadinessProbe,
};
use nullspace_store::ArtifactId;
use serde::{Deserialize, Serialize};

use crate::context::PlannedContext;
use crate::readiness::{Readiness, Timing};

/// Workdir of a template that names none; it exists in every guest.
pub const DEFAULT_WORKDIR: &str = "/workspace";

/// A build's definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BuildPlan {
    /// Where the root filesystem comes from.
    pub(crate) source: Source,
    /// What is done to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) steps: Vec<TemplateStep>,
    /// The files that steps copy.
    #[serde(default, skip_serializing_if = "PlannedContext::is_empty")]
    pub(crate) context: PlannedContext,
    /// Size and reach of the machine.
    pub(crate) machine: MachineSize,
    /// Variables of build time; gone afterwards.
    pub(crate) build_envs: BTreeMap<String, String>,
    /// The user's start command, run by `sh -c`.
    pub(crate) start_cmd: Option<String>,
    /// What sandboxes run when they are resumed, by `sh -c`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) resume_cmd: Option<String>,
    /// What the request says of run time; the source fills the gaps.
    pub(crate) runtime: RuntimeWish,
    /// Reuse nothing.
    pub(crate) skip_cache: bool,
    /// Credentials came with the request; their values are in memory only.
    pub(crate) authenticated: bool,
}

/// Where a root filesystem comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Source {
    /// An image in a registry.
    Image {
        /// As the user wrote it.
        reference: String,
    },
    /// Another template, pinned when the build was accepted.
    Template {
        /// As the user wrote it.
        reference: String,
        /// What it meant then.
        artifact: ArtifactId,
    },
    /// A Dockerfile, built by BuildKit.
    Dockerfile(PlannedDockerfile),
    /// The root tree of the built-in base template: a tar on this host.
    BaseTar {
        /// SHA-256 of the tar, hex.
        sha256: String,
    },
}

/// A Dockerfile and what its build is told, but for values that are secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlannedDockerfile {
    /// The Dockerfile.
    pub(crate) text: String,
    /// Its path in the context, which says where its own ignore file is.
    pub(crate) path: String,
    /// Build arguments.
    pub(crate) args: BTreeMap<String, String>,
    /// Stage to build; the last one when it is `None`.
    pub(crate) target: Option<String>,
    /// Registry of the one image that `base_image_auth` is for, when that was given.
    pub(crate) base_registry: Option<String>,
    /// Registries of `registry_auth`.
    pub(crate) registries: Vec<String>,
    /// Ids of `build_secrets`.
    pub(crate) secrets: Vec<String>,
}

/// Size and reach of a build's machine and of the sandboxes made from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MachineSize {
    /// Virtual CPUs.
    pub(crate) vcpus: u32,
    /// Memory, MiB.
    pub(crate) memory_mib: u32,
    /// Whether the build machine reaches the internet.
    pub(crate) internet_access: bool,
    /// Disk as the guest sees it, MiB; `None`: the source's size and some headroom.
    pub(crate) disk_mb: Option<u32>,
}

/// What a request says of run time. `None`: as the source has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RuntimeWish {
    /// User of start command and execs.
    pub(crate) user: Option<String>,
    /// Their working directory.
    pub(crate) workdir: Option<String>,
    /// Variables of building, start command, sandboxes and child templates.
    pub(crate) envs: BTreeMap<String, String>,
    /// When the start command counts as ready.
    pub(crate) readiness: Option<Readiness>,
}

/// What sandboxes of a template start with. Kept with the artifact, with the values of variables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Runtime {
    /// Variables.
    pub(crate) envs: BTreeMap<String, String>,
    /// User; `None` is root.
    pub(crate) user: Option<String>,
    /// Working directory.
    pub(crate) workdir: String,
    /// What ran when the machine was snapshotted.
    pub(crate) start: Option<StartCommand>,
    /// When it counted as ready.
    pub(crate) readiness: Option<Readiness>,
    /// A line for `sh -c` that every sandbox runs when it is resumed, before anything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) resume: Option<String>,
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

/// A start command, as shown and as run. An image's own ENTRYPOINT and CMD run without a shell, since the image may have
/// none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StartCommand {
    /// As `runtime_defaults.start_cmd` shows it.
    pub(crate) shown: String,
    /// Program and arguments.
    pub(crate) argv: Vec<String>,
    /// Where it runs, when that is not the default working directory: an image that names none starts its own command
    /// in `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) dir: Option<String>,
    /// Whether it is the first process of a PID namespace of its own, as a container's command is: an image's own command,
    /// and an init system.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) first: bool,
}

/// Programs that do their work as PID 1 only.
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
    /// A line for `sh -c`. One that is nothing but an init system and its arguments takes the shell's place.
    pub(crate) fn shell(line: &str) -> Self {
        let plain = line.trim();
        let plain = plain.strip_prefix("exec ").unwrap_or(plain).trim();
        let word = plain.split_whitespace().next().unwrap_or_default();
        let first = INITS.contains(&word) && !plain.contains([';', '&', '|', '\n', '`', '$', '(', '<', '>']);
        let run = if first { format!("exec {plain}") } else { line.to_owned() };
        StartCommand { shown: line.to_owned(), argv: vec!["sh".to_owned(), "-c".to_owned(), run], dir: None, first }
    }

    /// ENTRYPOINT and CMD joined, escaped for show; `None` when both are empty.
    pub(crate) fn of_image(entrypoint: &[String], cmd: &[String]) -> Option<Self> {
        let argv: Vec<String> = entrypoint.iter().chain(cmd).cloned().collect();
        if argv.is_empty() {
            return None;
        }
        let shown = argv.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ");
        Some(StartCommand { shown, argv, dir: None, first: true })
    }
}

/// A word as a POSIX shell reads it back.
pub(crate) fn quote(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

impl Runtime {
    /// Names another working directory, for the start command too.
    pub(crate) fn set_workdir(&mut self, workdir: &str) {
        self.workdir = workdir.to_owned();
        if let Some(start) = &mut self.start {
            start.dir = None;
        }
    }

    /// The source's runtime with the request's wishes over it: variables one by one, everything else whole.
    pub(crate) fn with(mut self, start_cmd: Option<&str>, resume_cmd: Option<&str>, wish: &RuntimeWish) -> Runtime {
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

    /// What the API shows: keys of variables, never values.
    pub(crate) fn shown(&self) -> nullspace_api::TemplateRuntimeDefaults {
        nullspace_api::TemplateRuntimeDefaults {
            default_env_keys: self.envs.keys().cloned().collect(),
            start_cmd: self.start.as_ref().map(|start| start.shown.clone()),
            default_user: self.user.clone(),
            default_workdir: Some(self.workdir.clone()),
            readiness: self.readiness.as_ref().map(readiness_to_api),
        }
    }
}

/// The wire's form of a readiness.
pub(crate) fn readiness_to_api(readiness: &Readiness) -> TemplateReadinessProbe {
    let parts =
        |timing: &Timing| (Some(timing.timeout_secs), Some(timing.interval_ms), Some(timing.startup_grace_secs));
    match readiness {
        Readiness::Tcp { port, timing } => {
            let (timeout_secs, interval_ms, startup_grace_secs) = parts(timing);
            TemplateReadinessProbe::Tcp(TcpReadinessProbe {
                port: *port,
                timeout_secs,
                interval_ms,
                startup_grace_secs,
            })
        }
        Readiness::Http { port, path, timing } => {
            let (timeout_secs, interval_ms, startup_grace_secs) = parts(timing);
            let (port, path) = (*port, path.clone());
            let probe = HttpReadinessProbe { port, path, timeout_secs, interval_ms, startup_grace_secs };
            TemplateReadinessProbe::Http(probe)
        }
        Readiness::Command { command, timing, .. } => {
            let (timeout_secs, interval_ms, startup_grace_secs) = parts(timing);
            let command = command.clone();
            let probe = CommandReadinessProbe { command, timeout_secs, interval_ms, startup_grace_secs };
            TemplateReadinessProbe::Command(probe)
        }
        Readiness::Timeout { timeout_ms } => {
            TemplateReadinessProbe::Timeout(TimeoutReadinessProbe { timeout_ms: *timeout_ms })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
