//! A build's steps as units. A unit runs and is cached as one, with its user, working directory and folders.
//!
//! `user`, `workdir` and `skip_cache` only change that state. A missing working directory is made before the first unit that
//! uses it, and is a part of that unit's key. An unused one is made at the end.

use nullspace_api::TemplateStep;

use super::effect;
use super::task::Effect;
use crate::runtime::DEFAULT_WORKDIR;

/// The user and working directory of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At {
    /// User; `None` is root.
    pub user: Option<String>,
    /// Working directory, absolute and normalised.
    pub workdir: String,
}

/// A folder that a `workdir` step named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// Path, absolute and normalised.
    pub path: String,
    /// Owner of a folder that has to be made: the user at the `workdir` step, as in BuildKit.
    pub owner: Option<String>,
}

/// A unit: the steps and folders that run and are cached as one.
#[derive(Debug, Clone)]
pub struct Unit<'p> {
    /// Number of the step, from 1.
    pub index: u32,
    /// Its step; `None` for folders that no step uses.
    pub step: Option<&'p TemplateStep>,
    /// Its user and working directory.
    pub at: At,
    /// Folders to make first.
    pub folders: Vec<Folder>,
    /// A `skip_cache` step came before.
    pub behind_boundary: bool,
    /// Steps before this one, from 1, that only changed the state.
    pub passed: Vec<(u32, &'p TemplateStep)>,
}

/// A build's steps, laid out.
#[derive(Debug, Clone)]
pub struct Laid<'p> {
    /// The units, in order.
    pub units: Vec<Unit<'p>>,
    /// The state after the last step: the template's defaults.
    pub end: At,
    /// Steps after the last unit.
    pub passed: Vec<(u32, &'p TemplateStep)>,
    /// There is a `skip_cache` step.
    pub boundary: bool,
    /// Number of steps.
    pub total: u32,
}

/// Lays out steps that begin in this state.
pub fn lay(steps: &[TemplateStep], begin: At) -> Laid<'_> {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let mut laid =
        Laid { units: Vec::new(), end: begin, passed: Vec::new(), boundary: false, total: number(steps.len()) };
    let mut folders: Vec<Folder> = Vec::new();
    let mut index = 0;
    for step in steps {
        index += 1;
        match effect(step) {
            Effect::User(user) => laid.end.user = Some(user.to_owned()),
            Effect::Workdir(path) => {
                laid.end.workdir = join(&laid.end.workdir, path);
                let folder = Folder { path: laid.end.workdir.clone(), owner: laid.end.user.clone() };
                // Every guest has these.
                let is_there = folder.path == "/" || folder.path == DEFAULT_WORKDIR;
                if !is_there && !folders.iter().any(|known| known.path == folder.path) {
                    folders.push(folder);
                }
            }
            Effect::CacheBoundary => laid.boundary = true,
            Effect::Tasks(_) => {
                laid.units.push(Unit {
                    index,
                    step: Some(step),
                    at: laid.end.clone(),
                    folders: std::mem::take(&mut folders),
                    behind_boundary: laid.boundary,
                    passed: std::mem::take(&mut laid.passed),
                });
                continue;
            }
        }
        laid.passed.push((index, step));
    }
    if !folders.is_empty() {
        laid.units.push(Unit {
            index,
            step: None,
            at: laid.end.clone(),
            folders,
            behind_boundary: laid.boundary,
            passed: std::mem::take(&mut laid.passed),
        });
    }
    laid
}

/// Joins paths in the guest to an absolute one without `.`, `..` and double slashes, as Docker's `WORKDIR` does.
pub fn join(workdir: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let begin = if path.starts_with('/') { "" } else { workdir };
    for part in begin.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn steps(steps: Value) -> Vec<TemplateStep> {
        serde_json::from_value(steps).unwrap()
    }

    #[test]
    fn users_and_working_directories_hold_for_what_follows() {
        let steps = steps(json!([
            {"action": "run", "command": "one"},
            {"action": "workdir", "path": "app/./src"},
            {"action": "user", "user": "app"},
            {"action": "workdir", "path": "../deep"},
            {"action": "run", "command": "two"},
            {"action": "skip_cache"},
            {"action": "run", "command": "three"},
            {"action": "workdir", "path": "/workspace"},
            {"action": "user", "user": "last"},
        ]));
        let laid = lay(&steps, At { user: None, workdir: "/workspace".into() });
        assert_eq!(laid.units.iter().map(|unit| unit.index).collect::<Vec<_>>(), [1, 5, 7]);
        let [one, two, three] = laid.units.as_slice() else { panic!() };
        assert_eq!((one.at.user.as_deref(), one.at.workdir.as_str(), one.folders.len()), (None, "/workspace", 0));
        assert_eq!((two.at.user.as_deref(), two.at.workdir.as_str()), (Some("app"), "/workspace/app/deep"));
        let folder = |path: &str, owner: Option<&str>| Folder { path: path.into(), owner: owner.map(str::to_owned) };
        assert_eq!(two.folders, [folder("/workspace/app/src", None), folder("/workspace/app/deep", Some("app"))]);
        assert_eq!(two.passed.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [2, 3, 4]);
        assert!(!two.behind_boundary && three.behind_boundary && laid.boundary && three.folders.is_empty());
        assert_eq!((laid.end.user.as_deref(), laid.end.workdir.as_str(), laid.total), (Some("last"), "/workspace", 9));
        assert_eq!(laid.passed.len(), 2);
    }

    #[test]
    fn a_working_directory_that_no_step_uses_is_made_at_the_end() {
        let steps = steps(json!([{"action": "workdir", "path": "/srv"}, {"action": "user", "user": "app"}]));
        let laid = lay(&steps, At { user: None, workdir: "/workspace".into() });
        assert_eq!(laid.units.len(), 1);
        assert!(laid.units[0].step.is_none() && laid.units[0].folders[0].path == "/srv");
    }

    #[test]
    fn paths_are_joined_as_docker_does() {
        for (workdir, path, expected) in [
            ("/a", "b", "/a/b"),
            ("/a", "/b//c/", "/b/c"),
            ("/a", "../../..", "/"),
            ("/a", ".", "/a"),
            ("/", "x y", "/x y"),
        ] {
            assert_eq!(join(workdir, path), expected);
        }
    }
}
