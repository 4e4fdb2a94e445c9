//! Resume hooks: programs of an image that run whenever its machine was resumed. They renew processes from before the
//! snapshot.
//!
//! ```text
//!  identity, clock, network right ── /etc/nullspace/resume.d/* in the order of their names, as root
//!                                 └─ the template's resume command, as the start command's user
//! ```
//! They run one after the other, all within [`RESUME_LIMIT_MS`]. The first failure ends the rest, and the sandbox.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nullspace_guest::message::{Exec, Failure, FailureKind, RESUME_LIMIT_MS};

use crate::process::prepare::prepare;
use crate::process::spawn::spawn;
use crate::process::supervise::{Unfinished, supervise};
use crate::process::tail::Tail;
use crate::{generation, log};

/// The folder of an image's hooks.
const HOOKS: &str = "/etc/nullspace/resume.d";
/// Most hooks. A folder with more is an error, not a long wait.
const MAX_HOOKS: usize = 64;

fn failure(message: String) -> Failure {
    Failure { kind: FailureKind::Resume, message }
}

/// Runs the hooks of the image, then `command`.
pub(crate) fn run(command: Option<&Exec>) -> Result<(), Failure> {
    run_in(Path::new(HOOKS), command, Duration::from_millis(RESUME_LIMIT_MS))
}

fn run_in(folder: &Path, command: Option<&Exec>, limit: Duration) -> Result<(), Failure> {
    let hooks = hooks(folder)?;
    let (until, generation) = (Instant::now() + limit, generation::current());
    let about = |envs: &BTreeMap<String, String>| {
        let mut envs = envs.clone();
        envs.extend(generation.clone().map(|value| ("NULLSPACE_GENERATION".to_owned(), value)));
        envs
    };
    for hook in hooks {
        let exec = Exec { argv: vec![hook.clone()], envs: about(&BTreeMap::new()), ..Exec::default() };
        one(&format!("The resume hook {hook}"), exec, until, limit)?;
    }
    if let Some(command) = command {
        let exec = Exec { envs: about(&command.envs), first: false, stdin: false, ..command.clone() };
        one("The resume command", exec, until, limit)?;
    }
    Ok(())
}

fn one(what: &str, exec: Exec, until: Instant, limit: Duration) -> Result<(), Failure> {
    let began = Instant::now();
    let left = until.saturating_duration_since(began);
    let too_long =
        || failure(format!("{what} did not end in time: all hooks of a resume have {} s together.", limit.as_secs()));
    if left.is_zero() {
        return Err(too_long());
    }
    let cannot = |error: Failure| failure(format!("{what} cannot be run: {}", error.message));
    let child = spawn(&prepare(&exec).map_err(cannot)?, false).map_err(cannot)?;
    let mut tail = Tail::new(None);
    let ended = supervise(child, Some(left), &mut tail);
    let line = tail.last_line();
    let said = if line.is_empty() { String::new() } else { format!(" Its last words: {line}") };
    match ended {
        Ok(exit) if exit.timed_out => Err(failure(format!("{}{said}", too_long().message))),
        Ok(exit) if exit.code == 0 => {
            log::note(format_args!("{what} took {} ms", began.elapsed().as_millis()));
            Ok(())
        }
        Ok(exit) => {
            let memory = if exit.out_of_memory { ": the machine's memory ran out" } else { "" };
            Err(failure(format!("{what} ended with exit code {}{memory}.{said}", exit.code)))
        }
        Err(Unfinished::Cancelled | Unfinished::Stuck) => Err(failure(format!("{what} cannot be ended.{said}"))),
    }
}

/// The hooks in the order of their names: executable files, and links to them. Hidden files and leftovers of editors and
/// packagers are skipped, as in run-parts(8).
fn hooks(folder: &Path) -> Result<Vec<String>, Failure> {
    // Nearly always there is none.
    let Ok(entries) = fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut hooks = Vec::new();
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let left_over = name.starts_with('.') || name.ends_with('~') || name.contains(".dpkg-");
        let path = entry.path();
        let runs = fs::metadata(&path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
        if left_over || !runs {
            continue;
        }
        if hooks.len() >= MAX_HOOKS {
            return Err(failure(format!("{} holds more than {MAX_HOOKS} hooks.", folder.display())));
        }
        hooks.push(path.display().to_string());
    }
    hooks.sort_unstable();
    Ok(hooks)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn hook(folder: &Path, name: &str, mode: u32, script: &str) {
        let path = folder.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn as_tester(script: &str) -> Exec {
        Exec {
            argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            user: Some(format!("{}:{}", nix::unistd::geteuid(), nix::unistd::getegid())),
            ..Exec::default()
        }
    }

    #[test]
    fn an_image_without_hooks_has_nothing_to_wait_for() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(run_in(&folder.path().join("none"), None, Duration::ZERO), Ok(()));
        assert_eq!(run_in(folder.path(), None, Duration::ZERO), Ok(()));
    }

    #[test]
    fn hooks_run_in_the_order_of_their_names_and_the_command_last() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: hooks run as root");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let say = |word: &str| format!("echo {word} >> {}", out.display());
        let hooks = folder.path().join("resume.d");
        fs::create_dir(&hooks).unwrap();
        hook(&hooks, "20-second", 0o755, &say("second"));
        hook(&hooks, "10-first", 0o755, &say("first"));
        hook(folder.path(), "elsewhere", 0o755, &say("linked"));
        std::os::unix::fs::symlink("../elsewhere", hooks.join("30-link")).unwrap();
        std::os::unix::fs::symlink("nowhere", hooks.join("40-dangling")).unwrap();
        fs::create_dir(hooks.join("50-folder")).unwrap();
        for left_over in ["60-plain", ".hidden", "70-editor~", "80-conf.dpkg-old"] {
            let mode = if left_over == "60-plain" { 0o644 } else { 0o755 };
            hook(&hooks, left_over, mode, &say(left_over));
        }
        run_in(&hooks, Some(&as_tester(&say("command"))), LIMIT).unwrap();
        assert_eq!(fs::read_to_string(&out).unwrap(), "first\nsecond\nlinked\ncommand\n");

        // The first that fails is the last that runs, and is told with its last words.
        fs::remove_file(&out).unwrap();
        hook(&hooks, "15-bad", 0o755, "echo it is broken >&2; exit 3");
        let failed = run_in(&hooks, Some(&as_tester(&say("command"))), LIMIT).unwrap_err();
        assert_eq!(failed.kind, FailureKind::Resume);
        for part in ["15-bad", "exit code 3", "it is broken"] {
            assert!(failed.message.contains(part), "{part}: {failed}");
        }
        assert_eq!(fs::read_to_string(&out).unwrap(), "first\n");
    }

    #[test]
    fn what_takes_too_long_or_cannot_run_is_a_typed_failure() {
        let folder = tempfile::tempdir().unwrap();
        let failed = run_in(folder.path(), Some(&as_tester("sleep 60")), Duration::from_millis(200)).unwrap_err();
        assert_eq!(failed.kind, FailureKind::Resume);
        assert!(failed.message.contains("did not end in time"), "{failed}");
        let missing = Exec { argv: vec!["/no/such/program".to_owned()], ..as_tester("") };
        let failed = run_in(folder.path(), Some(&missing), LIMIT).unwrap_err();
        assert_eq!(failed.kind, FailureKind::Resume);
        assert!(failed.message.contains("/no/such/program"), "{failed}");
    }

    #[test]
    fn a_folder_of_a_thousand_hooks_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..=MAX_HOOKS {
            hook(folder.path(), &format!("{number}"), 0o755, "exit 1");
        }
        let failed = run_in(folder.path(), None, LIMIT).unwrap_err();
        assert!(failed.message.contains("more than"), "{failed}");
    }
}
