//! The object store of the settings: an S3 bucket, or none.
//!
//! ```text
//!   s3_… settings ── checked ──> ObjectSettings ── reached within 30 s ──> data folder
//!                                                                            └── upload_missing, in the background
//! ```

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nullspace_data::{
    ArtifactStore, ChunkStop, DataError, ObjectSettings, UploadedAll, check_objects, object_store_id,
};
use nullspace_objects::{Error, Objects, S3Credentials, S3Settings};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::serve;

/// Longest wait for the store's first answer.
const ANSWER: Duration = Duration::from_secs(30);
/// Pause after a failed upload of what the data folder alone has: the first, and the longest.
const PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Returns an error that names the setting when those of the object store cannot be right. The credentials are not read.
pub(crate) fn check(config: &Config) -> anyhow::Result<()> {
    let Some(bucket) = &config.s3_bucket else {
        let others = [
            ("s3_endpoint", config.s3_endpoint.is_some()),
            ("s3_prefix", config.s3_prefix.is_some()),
            ("s3_region", config.s3_region.is_some()),
            ("s3_path_style", config.s3_path_style.is_some()),
            ("s3_allow_http", config.s3_allow_http),
            ("s3_credentials_file", config.s3_credentials_file.is_some()),
        ];
        if let Some((name, _)) = others.iter().find(|(_, given)| *given) {
            bail!("{name} is set and s3_bucket is not: without a bucket there is no object store");
        }
        return Ok(());
    };
    if let Some(path) = &config.s3_credentials_file {
        ensure!(!path.as_os_str().is_empty(), "s3_credentials_file is empty: it must be a path");
    }
    let unread = S3Credentials::File { path: PathBuf::new(), profile: String::new() };
    s3(config, bucket, unread, None).check().map_err(|invalid| {
        // The store's own names of these two, as settings.
        let what = invalid.what.replace("set path_style", "set s3_path_style");
        anyhow::anyhow!("s3_{}: {}", invalid.field, what.replace("set allow_http", "set s3_allow_http"))
    })
}

fn s3(config: &Config, bucket: &str, credentials: S3Credentials, extra_ca_pem: Option<Vec<u8>>) -> S3Settings {
    let settings = S3Settings::new(bucket, credentials);
    S3Settings {
        endpoint: config.s3_endpoint.clone(),
        prefix: config.s3_prefix.clone().unwrap_or_default(),
        region: config.s3_region.clone().unwrap_or(settings.region),
        path_style: config.s3_path_style,
        allow_http: config.s3_allow_http,
        extra_ca_pem,
        ..settings
    }
}

/// The object store of the settings, of which nothing is asked yet.
///
/// # Errors
/// When there are no credentials, or they or the extra certificates cannot be read.
pub(crate) fn settings(config: &Config) -> anyhow::Result<Option<ObjectSettings>> {
    let Some(bucket) = &config.s3_bucket else { return Ok(None) };
    let credentials = match &config.s3_credentials_file {
        Some(path) => S3Credentials::File { path: path.clone(), profile: "default".to_owned() },
        None => S3Credentials::from_environment().context("s3_credentials_file is not set")?,
    };
    let settings = s3(config, bucket, credentials, serve::extra_ca(config)?);
    Ok(Some(ObjectSettings {
        objects: Objects::s3(settings).context("set up the object store of s3_bucket")?,
        cache_bytes: config.object_cache_mib.saturating_mul(1 << 20),
        grace: Duration::from_secs(config.object_grace_secs),
    }))
}

/// How a command uses the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Reads from it.
    Read,
    /// Also puts and deletes.
    Write,
}

/// Asks the store once, so that one that cannot be used is told at once and with its place.
///
/// # Errors
/// When it does not answer within 30 s, or refuses.
pub(crate) async fn reach(objects: &Objects, how: Use) -> anyhow::Result<()> {
    let reached = match how {
        Use::Write => check_objects(objects, ANSWER).await,
        Use::Read => match tokio::time::timeout(ANSWER, object_store_id(objects)).await {
            Ok(read) => read.map(drop),
            Err(_) => {
                let what = format!("no answer within {} s", ANSWER.as_secs());
                Err(DataError::Objects { context: "read".to_owned(), source: Error::Unavailable { what } })
            }
        },
    };
    reached.with_context(|| {
        format!("the object store of the settings (s3_bucket, s3_endpoint) cannot be used: {}", objects.location())
    })
}

/// Uploads everything that only the data folder has, until that has succeeded once or the service stops.
pub(crate) async fn upload_missing(files: ArtifactStore, stop: CancellationToken) {
    let Some(objects) = files.objects() else { return };
    let location = objects.location().to_owned();
    let (ended, mut pause) = (ChunkStop::default(), PAUSE);
    loop {
        let uploaded = tokio::select! {
            biased;
            () = stop.cancelled() => {
                ended.stop();
                return;
            }
            uploaded = files.upload_missing(ended.clone()) => uploaded,
        };
        match uploaded {
            Ok(uploaded) if uploaded == UploadedAll::default() => return,
            Ok(UploadedAll { packs, blobs, logs }) => {
                let (blobs, logs) = (blobs.files, logs.files);
                tracing::info!(
                    packs,
                    blobs,
                    logs,
                    "everything in the data folder is in the object store now: {location}"
                );
                return;
            }
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::new(error));
                let seconds = pause.as_secs();
                tracing::warn!(error, seconds, "the data folder is not wholly uploaded yet; the upload goes on later");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn config(lines: &str) -> anyhow::Result<Config> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(lines.as_bytes()).unwrap();
        Config::load(Some(file.path()), |_| None)
    }

    #[test]
    fn a_setting_that_cannot_be_right_is_named() {
        let bucket = "s3_bucket = 'templates'\n";
        for (lines, named) in [
            ("s3_bucket = 'A b'".to_owned(), "s3_bucket"),
            (format!("{bucket}s3_endpoint = 'minio:9000'"), "s3_endpoint"),
            (format!("{bucket}s3_endpoint = 'https://user:secret@minio'"), "s3_endpoint"),
            (format!("{bucket}s3_endpoint = 'http://minio.example:9000'"), "s3_allow_http"),
            (format!("{bucket}s3_endpoint = 'https://10.0.0.1'\ns3_path_style = false"), "s3_path_style"),
            (format!("{bucket}s3_prefix = '/x'"), "s3_prefix"),
            (format!("{bucket}s3_region = ''"), "s3_region"),
            (format!("{bucket}s3_credentials_file = ''"), "s3_credentials_file"),
            ("s3_endpoint = 'https://minio:9000'".to_owned(), "s3_endpoint"),
            ("s3_allow_http = true".to_owned(), "s3_allow_http"),
        ] {
            let error = format!("{:#}", config(&lines).expect_err(&lines));
            assert!(error.contains(named) && !error.contains("secret"), "{lines}: {error}");
        }
        let lines =
            format!("{bucket}s3_endpoint = 'http://minio.example:9000'\ns3_allow_http = true\ns3_prefix = 'a/b'");
        config(&lines).unwrap();
        config(bucket).unwrap();
    }

    #[tokio::test]
    async fn a_store_that_is_down_is_told_with_its_place_and_without_its_keys() {
        // A port that nothing listens on.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut keys = tempfile::NamedTempFile::new().unwrap();
        keys.write_all(b"[default]\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = canary-5f1b\n").unwrap();
        let lines = format!(
            "s3_bucket = 'templates'\ns3_endpoint = 'http://{free}'\ns3_prefix = 'main'\ns3_credentials_file = '{}'",
            keys.path().display()
        );
        let _ = rustls::crypto::ring::default_provider().install_default();
        let settings = settings(&config(&lines).unwrap()).unwrap().unwrap();
        for how in [Use::Read, Use::Write] {
            let error = format!("{:#}", reach(&settings.objects, how).await.unwrap_err());
            for part in ["bucket templates/main", &format!("http://{free}"), "s3_endpoint", "unavailable"] {
                assert!(error.contains(part), "{part}: {error}");
            }
            assert!(!error.contains("canary") && !format!("{settings:?}").contains("canary"), "{error}");
        }
    }
}
