//! Data that a public template exposes: the values of its variables, and the memory of its start command, which ran with
//! build-time variables. The publisher gets a warning with the variables' names. No warning shows a value.

use std::collections::BTreeSet;

use nullspace_api::{TemplateInfo, TemplateRuntimeDefaults, TemplateVisibility};
use nullspace_db::{Build, BuildFilter, BuildStatus, DbError, Visibility};
use nullspace_definition::runtime::Runtime;
use nullspace_definition::{Definition, Source};
use nullspace_service::Warned;
use nullspace_types::{BuildId, Caller, TemplateId};

use super::wire::column;
use crate::Inner;

/// Most names in one warning.
const MAX_NAMES: usize = 40;
/// Number of builds of one template that its warning covers, newest first.
const MAX_BUILDS: u32 = 100;

/// Data that a template exposes to every caller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Published {
    /// Names of the variables of its sandboxes.
    envs: BTreeSet<String>,
    /// Names of the additional variables of the start command's process.
    build_envs: BTreeSet<String>,
    /// The snapshot has a start command's memory.
    start: bool,
    /// It was taken of a sandbox.
    sandbox: bool,
}

impl Published {
    /// Takes it from a definition. The variables that the source adds are not known before the build.
    pub(crate) fn of_plan(plan: &Definition) -> Published {
        Published {
            envs: plan.runtime.envs.keys().cloned().collect(),
            build_envs: plan.build_envs.keys().cloned().collect(),
            start: plan.start_cmd.is_some(),
            sandbox: matches!(plan.source, Source::Snapshot { .. }),
        }
    }

    /// Takes it from a build that is being finished.
    pub(crate) fn of_runtime(plan: &Definition, runtime: &Runtime) -> Published {
        Published {
            envs: runtime.envs.keys().cloned().collect(),
            start: runtime.start.is_some(),
            ..Published::of_plan(plan)
        }
    }

    fn of_build(build: &Build) -> Result<Published, DbError> {
        let mut published = Published::of_plan(&column("builds.definition", &build.definition.0)?);
        if let Some(defaults) = &build.runtime_defaults {
            let defaults: TemplateRuntimeDefaults = column("builds.runtime_defaults", defaults)?;
            published.envs.extend(defaults.default_env_keys);
            published.start |= defaults.start_cmd.is_some();
        }
        Ok(published)
    }

    fn add(&mut self, other: Published) {
        self.envs.extend(other.envs);
        // Those of a build without a start command are gone.
        if other.start {
            self.build_envs.extend(other.build_envs);
        }
        self.start |= other.start;
        self.sandbox |= other.sandbox;
    }

    /// The warning for the publisher; `None` when nothing is exposed.
    pub(crate) fn warning(&self, template: &str) -> Option<String> {
        let mut parts = Vec::new();
        if !self.envs.is_empty() {
            parts.push(format!("the values of the variables {}", names(&self.envs)));
        }
        if self.start {
            let mut part = "the memory of the start command".to_owned();
            if !self.build_envs.is_empty() {
                part.push_str(&format!(", which ran with the build_envs {}", names(&self.build_envs)));
            }
            parts.push(part);
        }
        if self.sandbox {
            parts.push("the memory and files of a sandbox that was promoted".to_owned());
        }
        if parts.is_empty() {
            return None;
        }
        Some(format!("template {template} is public: every tenant can start it and read {}", parts.join(", and ")))
    }
}

/// Names in one line, as printable ASCII.
fn names(names: &BTreeSet<String>) -> String {
    let shown = |name: &String| name.escape_default().to_string().chars().take(64).collect::<String>();
    let mut shown: Vec<String> = names.iter().take(MAX_NAMES).map(shown).collect();
    if names.len() > MAX_NAMES {
        shown.push(format!("and {} more", names.len() - MAX_NAMES));
    }
    shown.join(", ")
}

impl Inner {
    /// Warnings about a template that is now public with all its builds.
    pub(crate) async fn publishes(
        &self,
        caller: &Caller,
        id: TemplateId,
        info: TemplateInfo,
    ) -> Result<Warned<TemplateInfo>, DbError> {
        if info.visibility != TemplateVisibility::Public {
            return Ok(Warned { value: info, warnings: Vec::new() });
        }
        let filter = BuildFilter {
            template: Some(id),
            status: Some(BuildStatus::Ready),
            backend: None,
            source_type: None,
            after: None,
            limit: MAX_BUILDS,
        };
        let mut published = Published::default();
        for build in self.db.list_builds(caller, filter).await?.builds {
            if build.artifact.as_ref().is_some_and(|artifact| artifact.deleted_at.is_none()) {
                published.add(Published::of_build(&build)?);
            }
        }
        Ok(warned(info, &published))
    }

    /// Warnings about one build's artifact, if its template is public.
    pub(crate) async fn publishes_build(
        &self,
        caller: &Caller,
        id: BuildId,
        info: TemplateInfo,
    ) -> Result<Warned<TemplateInfo>, DbError> {
        if info.visibility != TemplateVisibility::Public {
            return Ok(Warned { value: info, warnings: Vec::new() });
        }
        let mut published = Published::default();
        published.add(Published::of_build(&self.db.get_build(caller, id).await?)?);
        Ok(warned(info, &published))
    }
}

fn warned(info: TemplateInfo, published: &Published) -> Warned<TemplateInfo> {
    let warning = published.warning(&info.canonical_ref);
    said(warning.as_deref());
    Warned { value: info, warnings: warning.into_iter().collect() }
}

/// A build's warning when it is accepted for a template that is already public.
pub(crate) fn accepted(visibility: TemplateVisibility, template: &str, plan: Published) -> Vec<String> {
    if visibility != TemplateVisibility::Public {
        return Vec::new();
    }
    let mut published = Published::default();
    published.add(plan);
    let warning = published.warning(template);
    said(warning.as_deref());
    warning.into_iter().collect()
}

/// The log line about the data that a build exposes when it is ready, if its template is public.
pub(crate) async fn of_ready(
    inner: &Inner,
    build: &Build,
    definition: &Definition,
    runtime: &Runtime,
) -> Result<Option<String>, DbError> {
    // It may have been made public, or private, since the build began.
    let caller = Caller { tenant: build.tenant, namespace: build.namespace.clone(), key: None, read_only: false };
    let now = inner.db.get_build(&caller, build.id).await?;
    if now.visibility != Visibility::Public {
        return Ok(None);
    }
    let mut published = Published::default();
    published.add(Published::of_runtime(definition, runtime));
    let warning = published.warning(&now.canonical_ref());
    said(warning.as_deref());
    Ok(warning)
}

fn said(warning: Option<&str>) {
    if let Some(warning) = warning {
        tracing::warn!("{warning}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn what_is_given_away_is_named_and_nothing_else() {
        let warning = |envs: &[&str], build_envs: &[&str], start| {
            let mut published = Published::default();
            published.add(Published { envs: set(envs), build_envs: set(build_envs), start, sandbox: false });
            published.warning("me/app")
        };
        assert_eq!(warning(&[], &[], false), None);
        assert_eq!(warning(&[], &["GONE"], false), None, "build_envs are gone where nothing was started");
        assert_eq!(
            warning(&["B", "A"], &["TOKEN"], true).unwrap(),
            "template me/app is public: every tenant can start it and read the values of the variables A, B, and the \
             memory of the start command, which ran with the build_envs TOKEN"
        );
        assert!(warning(&["A"], &["GONE"], false).unwrap().ends_with("the variables A"));
        let promoted = Published { sandbox: true, ..Published::default() }.warning("me/app").unwrap();
        assert!(promoted.ends_with("can start it and read the memory and files of a sandbox that was promoted"));
        let odd = warning(&["N\u{c4}ME", "a\r\nX-Injected: 1", "\u{7f}"], &[], false).unwrap();
        assert!(odd.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{odd:?}");
        let many: Vec<String> = (0..1000).map(|number| format!("{}{number}", "LONG".repeat(60))).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let long = warning(&many, &many, true).unwrap();
        assert!(long.len() < 6000 && long.contains("and 960 more"), "{}", long.len());
    }
}
