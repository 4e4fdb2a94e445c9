//! Cache keys of layers and of finished artifacts. They cover every known input of a result.
//!
//! ```text
//!   image_key ──parent──> layer_key ──> image_key ──> … ──root──> artifact_key
//! ```
//! Every key names all fields of its inputs: a new field does not compile until it is a part of the key, or has a reason here
//! why it is not. Keys are stored; `keys_tests.rs` has some of earlier versions.

use std::collections::{BTreeMap, HashMap};

use nullspace_api::TemplateStep;
use nullspace_types::TenantId;
use sha2::{Digest, Sha256};

use crate::definition::Definition;
use crate::encoder::Encoder;
use crate::machine::MachineSize;
use crate::runtime::Runtime;
use crate::steps::{self, At, Files, Folder, Unit};

/// Version of the step executor. Raise it when the same step gives another result.
const EXECUTOR: &str = "1";

/// Inputs of every layer of a build beside its definition: values that are known only where and when it runs.
#[derive(Debug, Clone)]
pub struct Ground<'b> {
    /// The tenant of the build. Tenants share no layers.
    pub tenant: TenantId,
    /// Disk of the machine, bytes.
    pub disk_bytes: u64,
    /// Variables of the steps: [`Definition::step_envs`].
    pub envs: &'b BTreeMap<String, String>,
    /// The guest's kernel and agent.
    pub guest: &'b str,
    /// ABI of the agent.
    pub agent_abi: u32,
    /// Generations of the context's files by blob id; 0 for a file without one.
    pub generations: &'b HashMap<String, u64>,
}

/// Inputs of a finished artifact beside its definition.
#[derive(Debug, Clone)]
pub struct Finished<'b> {
    /// The tenant of the build. Tenants share no artifacts.
    pub tenant: TenantId,
    /// Key of the root image after the last step.
    pub root: &'b str,
    /// The runtime settings of sandboxes: [`Definition::runtime`].
    pub runtime: &'b Runtime,
    /// Disk of the machine, bytes.
    pub disk_bytes: u64,
    /// Compatibility class of the host, as a text that differs between classes.
    pub host: &'b str,
}

impl Definition {
    /// The key of the layer that `unit` makes over the root image `parent`.
    pub fn layer_key(&self, ground: &Ground<'_>, parent: &str, unit: &Unit<'_>) -> String {
        let Definition {
            // In `parent`: the root image that was made from it.
            source: _,
            // `unit` is of these; those before it are in `parent`.
            steps: _,
            context,
            machine,
            // In `ground.envs`.
            build_envs: _,
            // Both are run after the last layer.
            start_cmd: _,
            resume_cmd: _,
            // Its variables are in `ground.envs`; the rest holds after the last layer.
            runtime: _,
            // Says whether layers are looked up, not what is in them.
            skip_cache: _,
            // What credentials open is in `parent`.
            authenticated: _,
        } = self;
        let MachineSize {
            // Steps are not told how large their machine is.
            vcpus: _,
            memory_mib: _,
            internet_access,
            // In `ground.disk_bytes`, with what the source needs.
            disk_mb: _,
        } = machine;
        let Ground { tenant, disk_bytes, envs, guest, agent_abi, generations } = ground;
        let Unit {
            // A step's number is not what it does.
            index: _,
            step,
            at: At { user, workdir },
            folders,
            // Says whether the layer is looked up, not what is in it.
            behind_boundary: _,
            // In `at` and `folders`.
            passed: _,
        } = unit;
        let mut key = Encoder::new("layer");
        key.text(EXECUTOR);
        key.text(&tenant.to_string());
        key.text(parent);
        key.number(*disk_bytes);
        key.map(envs);
        key.flag(*internet_access);
        key.text(guest);
        key.number((*agent_abi).into());
        key.option(user.as_deref());
        key.text(workdir);
        key.count(folders.len());
        for Folder { path, owner } in folders {
            key.text(path);
            key.option(owner.as_deref());
        }
        key.flag(step.is_some());
        if let Some(step) = step {
            steps::encode(step, &mut key, &Files { context, generations });
        }
        key.finish()
    }

    /// The key of the finished artifact.
    pub fn artifact_key(&self, finished: &Finished<'_>) -> String {
        let Definition {
            // All three are in `finished.root`: the root image that they made.
            source: _,
            steps: _,
            context: _,
            machine,
            build_envs,
            // All three are in `finished.runtime`, over what the source says.
            start_cmd: _,
            resume_cmd: _,
            runtime: _,
            // Says whether artifacts are looked up, not what is in them.
            skip_cache: _,
            // What credentials open is in `finished.root`.
            authenticated: _,
        } = self;
        let Finished { tenant, root, runtime, disk_bytes, host } = finished;
        let mut key = Encoder::new("artifact");
        key.text(EXECUTOR);
        key.text(&tenant.to_string());
        key.text(root);
        // Structs of ours, whole: their JSON has all fields in one order and says where each ends.
        key.text(&serde_json::to_string(runtime).unwrap_or_default());
        key.text(&serde_json::to_string(machine).unwrap_or_default());
        key.text(host);
        key.map(build_envs);
        key.number(*disk_bytes);
        key.finish()
    }
}

/// The key of the root image of a layer's run. It is new each time, because two runs make two trees.
pub fn image_key(layer: &str, build: &str, epoch: u64) -> String {
    let mut key = Encoder::new("layer image");
    key.text(layer);
    key.text(build);
    key.number(epoch);
    key.finish()
}

/// SHA-256, hex, of the source and steps of a request without a Dockerfile: the `source_digest` of a plan. It is not a cache
/// key.
///
/// # Errors
/// When a step cannot be written as JSON.
pub fn source_digest(base: &str, steps: &[TemplateStep]) -> Result<String, serde_json::Error> {
    let steps = serde_json::to_vec(steps)?;
    let mut hash = Sha256::new();
    for part in [base.as_bytes(), &steps] {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
        hash.update(part);
    }
    Ok(hex::encode(hash.finalize()))
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
