//! The rules of requests about sandboxes.

use std::collections::BTreeMap;
use std::path::Path;

use nullspace_api::{CreateSandboxRequest, Envs, JsonObject};

use crate::egress;
use crate::machine::{MAX_DISK_MB, MAX_MEMORY_MIB, MAX_VCPUS, MIN_DISK_MB, MIN_MEMORY_MIB};
use crate::problems::{Invalid, Wrong};

/// Bytes of a sandbox's `metadata` as JSON.
const MAX_METADATA: usize = 64 * 1024;
/// Longest timeout, milliseconds.
const MAX_TIMEOUT_MS: u64 = 24 * 3600 * 1000;
/// Shortest time without use after which a sandbox ends or is paused, milliseconds.
const MIN_INACTIVITY_MS: u64 = 1000;
/// Longest time until a paused sandbox is deleted, milliseconds.
const MAX_DELETE_MS: u64 = 365 * 24 * 3600 * 1000;

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
    let times = [
        ("timeout_ms", request.timeout_ms, 1, MAX_TIMEOUT_MS),
        ("inactivity_timeout_ms", request.inactivity_timeout_ms, MIN_INACTIVITY_MS, MAX_TIMEOUT_MS),
        ("auto_delete_after_ms", request.auto_delete_after_ms, 1, MAX_DELETE_MS),
    ];
    for (field, value, low, high) in times {
        value.iter().for_each(|value| wrong.range(field, *value, low, high));
    }
    if let Some(path) = &request.cwd {
        cwd(&mut wrong, "cwd", path);
    }
    wrong.envs("envs", request.envs.as_ref());
    metadata(&mut wrong, "metadata", request.metadata.as_ref());
    egress::requested(&mut wrong, request);
    wrong.result()
}

/// Checks a new timeout of a sandbox, milliseconds.
///
/// # Errors
/// [`Invalid`] outside of 1 ms to 24 hours.
pub fn check_timeout(timeout_ms: u64) -> Result<(), Invalid> {
    let mut wrong = Wrong::default();
    wrong.range("timeout_ms", timeout_ms, 1, MAX_TIMEOUT_MS);
    wrong.result()
}

/// Checks a caller's own notes.
///
/// # Errors
/// [`Invalid`] above 64 KiB as JSON.
pub fn check_metadata(field: &str, given: Option<&JsonObject>) -> Result<(), Invalid> {
    let mut wrong = Wrong::default();
    metadata(&mut wrong, field, given);
    wrong.result()
}

fn metadata(wrong: &mut Wrong, field: &str, given: Option<&JsonObject>) {
    let json = given.and_then(|metadata| serde_json::to_vec(metadata).ok());
    if json.is_some_and(|json| json.len() > MAX_METADATA) {
        wrong.say(field, format_args!("is longer than {MAX_METADATA} bytes as JSON"));
    }
}

/// The directory in a sandbox's working tree that is the service's own.
pub const RESERVED: &str = "/workspace/.nullspace";

/// Checks a working directory in a guest: an absolute path outside of [`RESERVED`].
///
/// # Errors
/// [`Invalid`] with all its problems.
pub fn check_workdir(field: &str, path: &str) -> Result<(), Invalid> {
    let mut wrong = Wrong::default();
    cwd(&mut wrong, field, path);
    wrong.result()
}

fn cwd(wrong: &mut Wrong, field: &str, path: &str) {
    wrong.absolute(field, path);
    // Compared part by part: `.` and doubled slashes do not count.
    if Path::new(path).starts_with(RESERVED) {
        wrong.say(field, format_args!("is in {RESERVED}, which is reserved"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_working_directory_is_outside_of_what_is_reserved() {
        for (path, fits) in [
            ("/workspace/.nullspace", false),
            ("/workspace/./.nullspace//x", false),
            ("/workspace/.nullspaces", true),
            ("/workspace", true),
        ] {
            assert_eq!(check_workdir("cwd", path).is_ok(), fits, "{path}");
            let request = serde_json::from_value(json!({"cwd": path})).unwrap();
            assert_eq!(check_create(&request).is_ok(), fits, "{path}");
        }
    }

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
            ("inactivity_timeout_ms", vec![0, 999, 86_400_001], "1000 to 86400000"),
            ("auto_delete_after_ms", vec![0, u64::MAX], "1 to 31536000000"),
        ] {
            for value in wrong {
                let said = said(json!({ field: value }));
                assert!(said.contains(field) && said.contains(range), "{field} {value}: {said}");
            }
        }
        assert!(check_timeout(0).is_err() && check_timeout(1).is_ok() && check_timeout(86_400_001).is_err());
        let all = said(
            json!({"memory_mb": 0, "disk_mb": 0, "cwd": "x", "envs": {"A=": ""}, "metadata": {"a": "x".repeat(70_000)}}),
        );
        for field in ["memory_mb", "disk_mb", "cwd", "envs", "metadata"] {
            assert!(all.contains(field), "{field}: {all}");
        }
    }
}
