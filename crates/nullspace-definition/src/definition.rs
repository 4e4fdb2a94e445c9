//! A build's definition: the validated and normalised request, without secrets. The database stores it, and a worker on any
//! host needs nothing else.
//!
//! A new field is also named in [`crate::keys`]: as a part of a key, or with the reason why it is not one.

use std::collections::BTreeMap;

use nullspace_api::TemplateStep;
use nullspace_image_ref::Written;
use nullspace_types::{ArtifactId, SandboxId, SnapshotId};
use serde::{Deserialize, Serialize};

use crate::context::PlannedContext;
use crate::machine::MachineSize;
use crate::runtime::{Runtime, RuntimeWish};

/// A build's definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// The source of the root filesystem.
    pub source: Source,
    /// The steps on top of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<TemplateStep>,
    /// The files that steps copy.
    #[serde(default, skip_serializing_if = "PlannedContext::is_empty")]
    pub context: PlannedContext,
    /// Size and network access of the machine.
    pub machine: MachineSize,
    /// Build-time variables. Sandboxes do not get them.
    pub build_envs: BTreeMap<String, String>,
    /// The user's start command, run by `sh -c`.
    pub start_cmd: Option<String>,
    /// The command that sandboxes run when they are resumed, by `sh -c`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume_cmd: Option<String>,
    /// The request's runtime settings. The source provides the rest.
    pub runtime: RuntimeWish,
    /// True: nothing is reused.
    pub skip_cache: bool,
    /// True: credentials came with the request. Their values are in memory only.
    pub authenticated: bool,
}

/// The source of a root filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Source {
    /// An image in a registry.
    Image {
        /// The reference as the user wrote it, and its parsed form.
        reference: Written,
    },
    /// Another template, pinned when the build was accepted.
    Template {
        /// As the user wrote it.
        reference: String,
        /// Its artifact at that time.
        artifact: ArtifactId,
    },
    /// A Dockerfile, built by BuildKit.
    Dockerfile(PlannedDockerfile),
    /// The root tree of the built-in base template: a tar on this host.
    BaseTar {
        /// SHA-256 of the tar, hex.
        sha256: String,
    },
    /// A snapshot of a sandbox, which became a template as it was. Nothing is built from it.
    Snapshot {
        /// The snapshot, which may be deleted since.
        snapshot: SnapshotId,
        /// The sandbox that it was taken of.
        sandbox: SandboxId,
    },
}

/// A Dockerfile and the settings of its build, without secret values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedDockerfile {
    /// The Dockerfile.
    pub text: String,
    /// Its path in the context, which also gives the path of its ignore file.
    pub path: String,
    /// Build arguments.
    pub args: BTreeMap<String, String>,
    /// Stage to build; `None` for the last one.
    pub target: Option<String>,
    /// Registry of the one image that `base_image_auth` is for, if it was given.
    pub base_registry: Option<String>,
    /// Registries of `registry_auth`.
    pub registries: Vec<String>,
    /// Ids of `build_secrets`.
    pub secrets: Vec<String>,
}

impl Definition {
    /// The definition of a machine that is its source and nothing more: no steps, variables or commands of its own.
    pub fn of_source(source: Source, machine: MachineSize) -> Self {
        Self {
            source,
            steps: Vec::new(),
            context: PlannedContext::default(),
            machine,
            build_envs: BTreeMap::new(),
            start_cmd: None,
            resume_cmd: None,
            runtime: RuntimeWish::default(),
            skip_cache: false,
            authenticated: false,
        }
    }

    /// Merges the runtime settings of sandboxes. `source` has those of the source and the steps; this definition's own
    /// settings override them.
    pub fn runtime(&self, source: Runtime) -> Runtime {
        source.with(self.start_cmd.as_deref(), self.resume_cmd.as_deref(), &self.runtime)
    }

    /// Merges the variables of the steps: runtime variables, overridden by build-time variables.
    pub fn step_envs(&self, runtime: &Runtime) -> BTreeMap<String, String> {
        let mut envs = runtime.envs.clone();
        envs.extend(self.build_envs.clone());
        envs
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_stored_definition_is_read_and_written_as_before() {
        let stored = json!({
            "source": {"kind": "image", "reference": "ubuntu:22.04"},
            "machine": {"vcpus": 1, "memory_mib": 512, "internet_access": true, "disk_mb": null},
            "build_envs": {},
            "start_cmd": null,
            "runtime": {"user": null, "workdir": null, "envs": {}, "readiness": null},
            "skip_cache": false,
            "authenticated": false,
        });
        let read: Definition = serde_json::from_value(stored.clone()).unwrap();
        let Source::Image { reference } = &read.source else { panic!() };
        assert_eq!(reference.reference().repository(), "library/ubuntu");
        assert_eq!(serde_json::to_value(&read).unwrap(), stored);
    }
}
