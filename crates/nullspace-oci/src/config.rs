//! The image config: an image's runtime settings, and the digests of its unpacked layers.
//!
//! Field names and meanings are those of the OCI image-spec (`config.md`) with Docker's additions (`Healthcheck`, `Shell`,
//! `OnBuild`), read as leniently as Docker reads them (null and missing alike).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::format::FormatError;
use crate::json;
use crate::offered::OfferedPlatform;

/// A parsed image config.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// When the image was made (RFC 3339), as written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The author of the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// The platform the image is for.
    #[serde(flatten)]
    pub platform: OfferedPlatform,
    /// How to run it.
    #[serde(deserialize_with = "json::null_default")]
    pub config: RunConfig,
    /// The layers' digests before compression, lowest layer first.
    #[serde(deserialize_with = "json::null_default")]
    pub rootfs: RootFs,
}

/// The `rootfs` object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type", deserialize_with = "json::null_default")]
    pub kind: String,
    /// Digests of the uncompressed layer tars, lowest layer first.
    #[serde(deserialize_with = "json::null_default")]
    pub diff_ids: Vec<Digest>,
}

/// The `config` object: execution defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RunConfig {
    /// `user`, `uid`, `user:group`, `uid:gid`, …; empty is root.
    #[serde(deserialize_with = "json::null_default")]
    pub user: String,
    /// `NAME=value` texts, as written (malformed ones are kept; the caller decides).
    #[serde(deserialize_with = "json::string_list_or_empty")]
    pub env: Vec<String>,
    /// The command's fixed front part. `None` and an empty list differ only in what a child image inherits.
    #[serde(deserialize_with = "json::string_list")]
    pub entrypoint: Option<Vec<String>>,
    /// The command's default arguments, or the command if there is no entrypoint.
    #[serde(deserialize_with = "json::string_list")]
    pub cmd: Option<Vec<String>>,
    /// The directory the command starts in; empty is `/`.
    #[serde(deserialize_with = "json::null_default")]
    pub working_dir: String,
    /// Labels.
    #[serde(deserialize_with = "json::string_map")]
    pub labels: BTreeMap<String, String>,
    /// `port/protocol` texts.
    #[serde(deserialize_with = "json::key_set", serialize_with = "as_set")]
    pub exposed_ports: Vec<String>,
    /// Paths that are meant to be volumes.
    #[serde(deserialize_with = "json::key_set", serialize_with = "as_set")]
    pub volumes: Vec<String>,
    /// The signal that asks the command to stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Seconds to wait after it (Docker).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    /// The shell of shell-form commands (Docker).
    #[serde(deserialize_with = "json::string_list", skip_serializing_if = "Option::is_none")]
    pub shell: Option<Vec<String>>,
    /// How to see whether the service is healthy (Docker).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Instructions for images built on this one (Docker).
    #[serde(deserialize_with = "json::string_list_or_empty", skip_serializing_if = "Vec::is_empty")]
    pub on_build: Vec<String>,
}

/// Docker's `HEALTHCHECK`. Durations are nanoseconds; 0 means Docker's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", args…]`, `["CMD-SHELL", command]`, or empty (inherited).
    #[serde(deserialize_with = "json::string_list_or_empty")]
    pub test: Vec<String>,
    /// Time between checks.
    #[serde(deserialize_with = "json::null_default")]
    pub interval: i64,
    /// Time one check may take.
    #[serde(deserialize_with = "json::null_default")]
    pub timeout: i64,
    /// Time after the start in which failures do not count.
    #[serde(deserialize_with = "json::null_default")]
    pub start_period: i64,
    /// Time between checks in the start period.
    #[serde(deserialize_with = "json::null_default")]
    pub start_interval: i64,
    /// Failures in a row that make the container unhealthy.
    #[serde(deserialize_with = "json::null_default")]
    pub retries: i64,
}

impl ImageConfig {
    /// Parses a config blob. The caller has limited its size.
    pub fn parse(bytes: &[u8]) -> Result<ImageConfig, FormatError> {
        json::parse(bytes).map_err(|source| FormatError::Json { what: "image config", reason: source.to_string() })
    }
}

fn as_set<S: serde::Serializer>(keys: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(keys.iter().map(|key| (key, serde_json::Map::new())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_reads_all_docker_fields() {
        let config = ImageConfig::parse(include_bytes!("../tests/config-full.json")).unwrap();
        assert_eq!(config.platform.architecture, "amd64");
        assert_eq!(config.config.user, "1000:app");
        assert_eq!(config.config.env, ["PATH=/bin", "EMPTY=", "malformed"]);
        assert_eq!(config.config.entrypoint.as_deref(), Some(&["/entry".to_owned()][..]));
        assert_eq!(config.config.cmd.as_deref(), Some(&["serve".to_owned(), "--port=80".to_owned()][..]));
        assert_eq!(config.config.exposed_ports, ["53/udp", "80/tcp"]);
        assert_eq!(config.config.volumes, ["/data"]);
        assert_eq!(config.config.labels["org.example.a"], "b");
        assert_eq!(config.config.shell.as_deref(), Some(&["/bin/bash".to_owned(), "-c".to_owned()][..]));
        assert_eq!(config.config.stop_signal.as_deref(), Some("SIGQUIT"));
        let check = config.config.healthcheck.as_ref().unwrap();
        assert_eq!(check.test, ["CMD-SHELL", "curl -f http://localhost/"]);
        assert_eq!((check.interval, check.timeout, check.retries), (30_000_000_000, 5_000_000_000, 3));
        assert_eq!(config.rootfs.diff_ids.len(), 1);
        // What is written is read back the same.
        let again = ImageConfig::parse(&serde_json::to_vec(&config).unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn config_is_as_tolerant_as_docker() {
        let nulls =
            br#"{"architecture":"amd64","os":"linux","config":{"User":null,"Env":null,"Cmd":null,"Entrypoint":"/x",
            "Labels":{"a":null},"ExposedPorts":null,"Volumes":null,"Healthcheck":null,"OnBuild":null,"Shell":null},
            "rootfs":{"type":"layers","diff_ids":null},"history":null,"unknown":[1]}"#;
        let config = ImageConfig::parse(nulls).unwrap();
        assert_eq!(config.config.entrypoint.as_deref(), Some(&["/x".to_owned()][..]));
        assert_eq!(config.config.labels["a"], "");
        assert_eq!(ImageConfig::parse(br#"{"config":null,"rootfs":null}"#).unwrap(), ImageConfig::default());
        let twice = ImageConfig::parse(br#"{"config":{"User":"a","User":"b"}}"#).unwrap();
        assert_eq!(twice.config.user, "b");
    }

    #[test]
    fn malformed_config_is_a_typed_error() {
        for bad in
            [&b""[..], b"[]", b"{", b"\xff", br#"{"rootfs":{"diff_ids":["sha256:12"]}}"#, br#"{"config":{"User":1}}"#]
        {
            assert!(matches!(ImageConfig::parse(bad), Err(FormatError::Json { .. })), "{bad:?}");
        }
    }
}
