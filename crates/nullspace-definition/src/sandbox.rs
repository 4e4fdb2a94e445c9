//! The rules of requests about sandboxes.

use std::collections::BTreeMap;

use nullspace_api::{CreateSandboxRequest, Envs};

use crate::machine::{MAX_DISK_MB, MAX_MEMORY_MIB, MAX_VCPUS, MIN_DISK_MB, MIN_MEMORY_MIB};
use crate::problems::{Invalid, Wrong};

/// Bytes of a sandbox's `metadata` as JSON.
const MAX_METADATA: usize = 64 * 1024;
/// Longest timeout in a create, milliseconds.
const MAX_TIMEOUT_MS: u64 = 24 * 3600 * 1000;

/// Checks and returns variables given when a sandbox is created or a command is run.
///
/// # Errors
/// [`Invalid`] with all their problems.
pub fn check_envs(field: &str, given: Option<&Envs>) -> Result<BTreeMap<String, String>, Invalid> {
    let mut wrong = Wrong::default();
    let checked = wrong.envs(field, given);
    wrong.result()?;
    Ok(checked)
}

/// Checks the ranges of a create's fields, which hold for every template.
///
/// # Errors
/// [`Invalid`] with every field outside its range.
pub fn check_create(request: &CreateSandboxRequest) -> Result<(), Invalid> {
    let mut wrong = Wrong::default();
    let sizes = [
        ("vcpus", request.vcpus, 1, MAX_VCPUS),
        ("memory_mb", request.memory_mb, MIN_MEMORY_MIB, MAX_MEMORY_MIB),
        ("disk_mb", request.disk_mb, MIN_DISK_MB, MAX_DISK_MB),
    ];
    for (field, value, low, high) in sizes {
        value.iter().for_each(|value| wrong.range(field, *value, low, high));
    }
    request.timeout_ms.iter().for_each(|timeout| wrong.range("timeout_ms", *timeout, 1, MAX_TIMEOUT_MS));
    if let Some(cwd) = &request.cwd {
        wrong.absolute("cwd", cwd);
    }
    wrong.envs("envs", request.envs.as_ref());
    let metadata = request.metadata.as_ref().and_then(|metadata| serde_json::to_vec(metadata).ok());
    if metadata.is_some_and(|json| json.len() > MAX_METADATA) {
        wrong.say("metadata", format_args!("is longer than {MAX_METADATA} bytes as JSON"));
    }
    wrong.result()
}

/// Checks an absolute path in a guest.
///
/// # Errors
/// [`Invalid`] with all its problems.
pub fn check_workdir(field: &str, path: &str) -> Result<(), Invalid> {
    let mut wrong = Wrong::default();
    wrong.absolute(field, path);
    wrong.result()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_create_names_every_field_beyond_its_range() {
        let said = |request: Value| {
            let request: CreateSandboxRequest = serde_json::from_value(request).unwrap();
            check_create(&request).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(said(json!({})), "");
        assert_eq!(said(json!({"vcpus": 32, "memory_mb": 65_536, "disk_mb": 1_048_576, "timeout_ms": 86_400_000})), "");
        assert_eq!(said(json!({"vcpus": 1, "memory_mb": 128, "disk_mb": 512, "timeout_ms": 1, "cwd": "/"})), "");
        for (field, wrong, range) in [
            ("vcpus", vec![0, 33, 4_294_967_295], "1 to 32"),
            ("memory_mb", vec![0, 127, 65_537, 4_294_967_295], "128 to 65536"),
            ("disk_mb", vec![0, 511, 1_048_577, 4_294_967_295], "512 to 1048576"),
            ("timeout_ms", vec![0, 86_400_001, u64::MAX], "1 to 86400000"),
        ] {
            for value in wrong {
                let said = said(json!({ field: value }));
                assert!(said.contains(field) && said.contains(range), "{field} {value}: {said}");
            }
        }
        let all = said(
            json!({"memory_mb": 0, "disk_mb": 0, "cwd": "x", "envs": {"A=": ""}, "metadata": {"a": "x".repeat(70_000)}}),
        );
        for field in ["memory_mb", "disk_mb", "cwd", "envs", "metadata"] {
            assert!(all.contains(field), "{field}: {all}");
        }
    }
}
