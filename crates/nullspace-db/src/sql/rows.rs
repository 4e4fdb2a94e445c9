//! Conversion of rows to values. A value of the wrong form is [`DbError::Corrupt`], named by column, never by content.

use std::str::FromStr;

use jiff::Timestamp;
use nullspace_types::{PrivateJson, Rootfs, Streams, Tag};
use serde_json::Value;
use sqlx::Row as _;

use super::DbRow;
use crate::{Artifact, ArtifactState, Build, DbError, LogEntry, Result, Sandbox, Snapshot, TagTarget, Template};

/// Reads a row's columns by name.
pub(super) struct Reader<'r>(pub(super) &'r DbRow);

impl Reader<'_> {
    pub(super) fn text(&self, column: &str) -> Result<String> {
        Ok(self.0.try_get(column)?)
    }

    pub(super) fn bytes(&self, column: &str) -> Result<Vec<u8>> {
        Ok(self.0.try_get(column)?)
    }

    pub(super) fn optional_bytes(&self, column: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.0.try_get(column)?)
    }

    pub(super) fn optional_text(&self, column: &str) -> Result<Option<String>> {
        Ok(self.0.try_get(column)?)
    }

    pub(super) fn parsed<T: FromStr>(&self, column: &str) -> Result<T> {
        let text: &str = self.0.try_get(column)?;
        text.parse().map_err(|_| DbError::corrupt(format!("column {column}")))
    }

    pub(super) fn optional_parsed<T: FromStr>(&self, column: &str) -> Result<Option<T>> {
        let text: Option<&str> = self.0.try_get(column)?;
        text.map(|text| text.parse().map_err(|_| DbError::corrupt(format!("column {column}")))).transpose()
    }

    pub(super) fn json(&self, column: &str) -> Result<Value> {
        parse_json(self.0.try_get(column)?, column)
    }

    pub(super) fn optional_json(&self, column: &str) -> Result<Option<Value>> {
        let text: Option<&str> = self.0.try_get(column)?;
        text.map(|text| parse_json(text, column)).transpose()
    }

    /// The column `streams` of an artifact or a snapshot. A capture has none.
    pub(super) fn streams(&self) -> Result<Option<Streams>> {
        let streams: Option<Streams> = (self.optional_json("streams")?.map(serde_json::from_value).transpose())
            .map_err(|_| DbError::corrupt("column streams".to_owned()))?;
        Ok(streams.filter(|streams| !streams.0.is_empty()))
    }

    /// The value of a comparison. Columns that hold one are integers.
    pub(super) fn flag(&self, column: &str) -> Result<bool> {
        Ok(self.0.try_get(column)?)
    }

    pub(super) fn integer<T: TryFrom<i64>>(&self, column: &str) -> Result<T> {
        let number: i64 = self.0.try_get(column)?;
        number.try_into().map_err(|_| DbError::corrupt(format!("column {column}")))
    }

    pub(super) fn optional_integer<T: TryFrom<i64>>(&self, column: &str) -> Result<Option<T>> {
        let number: Option<i64> = self.0.try_get(column)?;
        let fits = |number: i64| number.try_into().map_err(|_| DbError::corrupt(format!("column {column}")));
        number.map(fits).transpose()
    }

    pub(super) fn time(&self, column: &str) -> Result<Timestamp> {
        self.optional_time(column)?.ok_or_else(|| DbError::corrupt(format!("column {column}")))
    }

    pub(super) fn optional_time(&self, column: &str) -> Result<Option<Timestamp>> {
        let micros: Option<i64> = self.0.try_get(column)?;
        micros
            .map(|micros| Timestamp::from_microsecond(micros).map_err(|_| DbError::corrupt(format!("column {column}"))))
            .transpose()
    }
}

pub(super) fn parse_json(text: &str, column: &str) -> Result<Value> {
    // serde_json's message may quote the text: it is dropped.
    serde_json::from_str(text).map_err(|_| DbError::corrupt(format!("column {column}")))
}

/// A size or offset as the database's integer.
pub(super) fn integer(value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|_| DbError::conflict("a number is larger than the database can hold"))
}

/// `SELECT …` of every column that [`build`] reads, followed by `$rest`.
macro_rules! select_build {
    ($rest:literal) => {
        concat!(
            "SELECT b.*, t.visibility AS visibility, a.id IS NOT NULL AS has_artifact,
                    CASE WHEN EXISTS (SELECT 1 FROM template_tags g WHERE g.build_id = b.id)
                        THEN NULL ELSE a.retention_expires_at END AS retention_expires_at,
                    a.deleted_at AS artifact_deleted_at
             FROM builds b
             JOIN templates t ON t.id = b.template_id
             LEFT JOIN artifacts a ON a.build_id = b.id ",
            $rest
        )
    };
}
pub(super) use select_build;

pub(super) fn build(row: &DbRow) -> Result<Build> {
    let row = Reader(row);
    Ok(Build {
        id: row.parsed("id")?,
        tenant: row.parsed("tenant_id")?,
        template: row.parsed("template_id")?,
        artifact_id: row.parsed("artifact_id")?,
        status: row.parsed("status")?,
        name: row.parsed("name")?,
        namespace: row.text("namespace")?,
        visibility: row.parsed("visibility")?,
        description: row.optional_text("description")?,
        tags: tags(&row.text("tags")?)?,
        backend: row.parsed("backend")?,
        source_type: row.parsed("source_type")?,
        definition: PrivateJson(row.json("definition")?),
        build_config: row.json("build_config")?,
        source_digest: row.optional_text("source_digest")?,
        context_digest: row.optional_text("context_digest")?,
        dockerfile_digest: row.optional_text("dockerfile_digest")?,
        triggered_by: row.optional_text("triggered_by")?,
        retry_of: row.optional_parsed("retry_of")?,
        original: row.optional_parsed("original")?,
        attempt: row.integer("attempt")?,
        max_attempts: row.integer("max_attempts")?,
        created_at: row.time("created_at")?,
        updated_at: row.time("updated_at")?,
        queued_at: row.time("queued_at")?,
        started_at: row.optional_time("started_at")?,
        finished_at: row.optional_time("finished_at")?,
        not_before: row.optional_time("not_before")?,
        cancel_requested_at: row.optional_time("cancel_requested_at")?,
        cancel_requested_by: row.optional_text("cancel_requested_by")?,
        cancel_reason: row.optional_text("cancel_reason")?,
        failure_phase: row.optional_text("failure_phase")?,
        error: row.optional_text("error")?,
        error_detail: row.optional_json("error_detail")?,
        cache_summary: row.optional_json("cache_summary")?,
        runtime_defaults: row.optional_json("runtime_defaults")?,
        oci_metadata: row.optional_json("oci_metadata")?,
        artifact: if row.flag("has_artifact")? {
            Some(ArtifactState {
                retention_expires_at: row.optional_time("retention_expires_at")?,
                deleted_at: row.optional_time("artifact_deleted_at")?,
            })
        } else {
            None
        },
    })
}

pub(super) fn tags(text: &str) -> Result<Vec<Tag>> {
    serde_json::from_str(text).map_err(|_| DbError::corrupt("column tags"))
}

pub(super) fn log_entry(row: &DbRow) -> Result<LogEntry> {
    let row = Reader(row);
    Ok(LogEntry { offset: row.integer("position")?, at: row.time("at")?, body: row.json("body")? })
}

/// `SELECT …` of every column that [`template`] reads, followed by `$rest`.
macro_rules! select_template {
    ($rest:literal) => {
        concat!("SELECT t.*, n.kind AS kind FROM templates t JOIN namespaces n ON n.slug = t.namespace ", $rest)
    };
}
pub(super) use select_template;

pub(super) fn template(row: &DbRow) -> Result<Template> {
    let row = Reader(row);
    Ok(Template {
        id: row.parsed("id")?,
        tenant: row.parsed("tenant_id")?,
        namespace: row.text("namespace")?,
        namespace_kind: row.parsed("kind")?,
        name: row.parsed("name")?,
        visibility: row.parsed("visibility")?,
        description: row.text("description")?,
        created_at: row.time("created_at")?,
    })
}

pub(super) fn tag_target(row: &DbRow) -> Result<TagTarget> {
    let row = Reader(row);
    Ok(TagTarget { tag: row.parsed("tag")?, build: row.parsed("build_id")?, moved_at: row.time("moved_at")? })
}

/// `SELECT …` of every column that [`artifact`] reads, of artifacts whose root image is stored, followed by `$rest`.
macro_rules! select_stored_artifact {
    ($rest:literal) => {
        concat!(
            "SELECT a.*, b.template_id AS template_id, b.source_type AS source_type,
                    b.runtime_defaults AS runtime_defaults, b.oci_metadata AS oci_metadata, b.build_config AS build_config, r.file AS file, r.bytes AS bytes,
                    r.manifest AS manifest, r.info AS info, r.key AS key
             FROM artifacts a
             JOIN builds b ON b.id = a.build_id
             JOIN rootfs r ON r.key = a.rootfs_key ",
            $rest
        )
    };
}
pub(super) use select_stored_artifact;

/// The same, of usable artifacts only (`AND …`).
macro_rules! select_artifact {
    ($rest:literal) => {
        concat!(
            "SELECT a.*, b.template_id AS template_id, b.source_type AS source_type,
                    b.runtime_defaults AS runtime_defaults, b.oci_metadata AS oci_metadata, b.build_config AS build_config, r.file AS file, r.bytes AS bytes,
                    r.manifest AS manifest, r.info AS info, r.key AS key
             FROM artifacts a
             JOIN builds b ON b.id = a.build_id
             JOIN rootfs r ON r.key = a.rootfs_key
             WHERE a.deleted_at IS NULL ",
            $rest
        )
    };
}
pub(super) use select_artifact;

pub(super) fn artifact(row: &DbRow) -> Result<Artifact> {
    let root = rootfs(row)?;
    let row = Reader(row);
    Ok(Artifact {
        id: row.parsed("id")?,
        folder: row.text("folder")?,
        streams: row.streams()?,
        tenant: row.parsed("tenant_id")?,
        build: row.parsed("build_id")?,
        source_type: row.parsed("source_type")?,
        rootfs: root,
        disk_bytes: row.integer("disk_bytes")?,
        stored_bytes: row.integer("stored_bytes")?,
        compatibility: row.json("compatibility")?,
        snapshot: row.json("snapshot")?,
        runtime: PrivateJson(row.json("runtime")?),
        runtime_defaults: row.optional_json("runtime_defaults")?.unwrap_or_default(),
        oci_metadata: row.optional_json("oci_metadata")?,
        build_config: row.json("build_config")?,
        created_at: row.time("created_at")?,
        retention_expires_at: row.optional_time("retention_expires_at")?,
    })
}

pub(super) fn rootfs(row: &DbRow) -> Result<Rootfs> {
    let row = Reader(row);
    Ok(Rootfs {
        key: row.text("key")?,
        file: row.text("file")?,
        bytes: row.integer("bytes")?,
        manifest: row.optional_text("manifest")?,
        info: row.json("info")?,
    })
}

pub(super) fn sandbox(row: &DbRow) -> Result<Sandbox> {
    let row = Reader(row);
    Ok(Sandbox {
        id: row.parsed("id")?,
        tenant: row.parsed("tenant_id")?,
        artifact: row.parsed("artifact_id")?,
        template_ref: row.text("template_ref")?,
        status: row.parsed("status")?,
        reason: row.optional_text("reason")?,
        config: row.json("config")?,
        metadata: row.json("metadata")?,
        created_at: row.time("created_at")?,
        started_at: row.optional_time("started_at")?,
        timeout_at: row.optional_time("timeout_at")?,
        ended_at: row.optional_time("ended_at")?,
        host: row.text("host")?,
        sealed_envs: row.optional_bytes("sealed_envs")?,
        sealed_traffic_token: row.optional_bytes("sealed_traffic_token")?,
        snapshot: row.optional_parsed("snapshot_id")?,
        last_active_at: row.optional_time("last_active_at")?,
        continue_ms: row.optional_integer("continue_ms")?,
    })
}

pub(super) fn snapshot(row: &DbRow) -> Result<Snapshot> {
    let row = Reader(row);
    Ok(Snapshot {
        id: row.parsed("id")?,
        tenant: row.parsed("tenant_id")?,
        kind: row.parsed("kind")?,
        evicted: row.integer::<u8>("evicted")? != 0,
        sandbox: row.parsed("sandbox_id")?,
        artifact: row.parsed("artifact_id")?,
        folder: row.text("folder")?,
        streams: row.streams()?,
        summary: row.json("summary")?,
        size_bytes: row.integer("size_bytes")?,
        stored_bytes: row.integer("stored_bytes")?,
        metadata: row.json("metadata")?,
        template_ref: row.text("template_ref")?,
        config: row.json("config")?,
        sandbox_metadata: row.json("sandbox_metadata")?,
        sealed_envs: row.optional_bytes("sealed_envs")?,
        created_at: row.time("created_at")?,
    })
}
