//! Rules of collection: which data is in use, and which can be removed.
//!
//! Collection is by reference. Each rule is a query, repeated inside the transaction that releases the data. Files are
//! removed only after that transaction.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Store, Tx,
    rows::{self, Reader},
    snapshots,
};
use crate::{Collection, DbError, Result, SealedRows, UnusedArtifact};
use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{ArtifactId, KnownFiles, Rootfs, Streams};
use serde_json::json;

#[async_trait]
impl Collection for Store {
    async fn collectable_artifacts(&self, now: Timestamp, limit: u32) -> Result<Vec<UnusedArtifact>> {
        artifacts(self, now, limit).await
    }

    async fn purge_artifact(&self, artifact: ArtifactId, now: Timestamp) -> Result<bool> {
        purge_artifact(self, artifact, now).await
    }

    async fn collectable_rootfs(&self, unused_since: Timestamp, limit: u32) -> Result<Vec<Rootfs>> {
        rootfs(self, unused_since, limit).await
    }

    async fn purge_rootfs(&self, key: &str, unused_since: Timestamp) -> Result<bool> {
        purge_rootfs(self, key, unused_since).await
    }

    async fn set_rootfs_manifest(&self, file: &str, manifest: &str) -> Result<bool> {
        set_rootfs_manifest(self, file, manifest).await
    }

    async fn set_artifact_streams(&self, folder: &str, streams: &Streams) -> Result<bool> {
        set_artifact_streams(self, folder, streams).await
    }

    async fn known_files(&self) -> Result<KnownFiles> {
        known_files(self).await
    }

    async fn allotted(&self, artifacts: &BTreeSet<ArtifactId>) -> Result<BTreeSet<ArtifactId>> {
        allotted(self, artifacts).await
    }

    async fn forget_lost(&self, lost: &KnownFiles, now: Timestamp) -> Result<()> {
        forget_lost(self, lost, now).await
    }

    async fn forget_segments(&self, kept: &[Vec<u8>]) -> Result<()> {
        let mut tx = self.write().await?;
        for kept in kept {
            sqlx::query("DELETE FROM build_log_segments WHERE kept = $1").bind(kept).execute(&mut *tx).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    async fn sealed(&self) -> Result<BTreeMap<u8, SealedRows>> {
        sealed(self).await
    }
}

async fn sealed(store: &Store) -> Result<BTreeMap<u8, SealedRows>> {
    // A row with two secrets counts once.
    let rows = sqlx::query(
        "SELECT kind, key, count(*) AS count FROM (
             SELECT 'sandbox' AS kind, id, substr(sealed_envs, 1, 1) AS key FROM sandboxes WHERE ended_at IS NULL
             UNION SELECT 'sandbox', id, substr(sealed_traffic_token, 1, 1) FROM sandboxes WHERE ended_at IS NULL
             UNION SELECT 'snapshot', id, substr(sealed_envs, 1, 1) FROM snapshots WHERE ended_at IS NULL
             UNION SELECT 'webhook', id, substr(sealed_secret, 1, 1) FROM webhooks WHERE deleted_at IS NULL) AS sealed
         WHERE length(key) = 1 GROUP BY kind, key",
    )
    .fetch_all(&store.readers)
    .await?;
    let mut found: BTreeMap<u8, SealedRows> = BTreeMap::new();
    for row in &rows {
        let row = Reader(row);
        let key = row.bytes("key")?;
        let rows = found.entry(*key.first().ok_or_else(|| DbError::corrupt("a sealed secret"))?).or_default();
        let count = row.integer("count")?;
        match row.text("kind")?.as_str() {
            "sandbox" => rows.sandboxes = count,
            "snapshot" => rows.snapshots = count,
            _ => rows.webhooks = count,
        }
    }
    Ok(found)
}

pub(super) async fn set_rootfs_manifest(store: &Store, file: &str, manifest: &str) -> Result<bool> {
    let set = "UPDATE rootfs SET manifest = $1 WHERE file = $2 AND manifest IS NULL";
    Ok(store.run(sqlx::query(set).bind(manifest).bind(file)).await? > 0)
}

pub(super) async fn set_artifact_streams(store: &Store, folder: &str, streams: &Streams) -> Result<bool> {
    let set = "UPDATE artifacts SET streams = $1 WHERE folder = $2 AND streams IS NULL AND purged_at IS NULL";
    Ok(store.run(sqlx::query(set).bind(json!(streams).to_string()).bind(folder)).await? > 0)
}

/// `$1` is now.
const UNUSED_ARTIFACT: &str = "a.purged_at IS NULL
    AND (a.deleted_at IS NOT NULL
         OR (a.retention_expires_at <= $1
             AND NOT EXISTS (SELECT 1 FROM template_tags g WHERE g.build_id = a.build_id)))
    AND NOT EXISTS (SELECT 1 FROM sandboxes s WHERE s.artifact_id = a.id AND s.ended_at IS NULL)
    AND NOT EXISTS (SELECT 1 FROM snapshots p WHERE p.artifact_id = a.id)
    AND NOT EXISTS (SELECT 1 FROM artifact_holds h WHERE h.artifact_id = a.id)
    -- Of a template that was deleted, a pool keeps nothing.
    AND (a.deleted_at IS NOT NULL
         OR NOT EXISTS (SELECT 1 FROM warm_pools w WHERE w.artifact_id = a.id AND w.deleted_at IS NULL))";

/// `$1` is the time since which it was not used.
const UNUSED_ROOTFS: &str = "r.last_used_at < $1
    AND NOT EXISTS (SELECT 1 FROM artifacts a WHERE a.rootfs_key = r.key)
    AND NOT EXISTS (SELECT 1 FROM rootfs_holds h WHERE h.rootfs_key = r.key)";

pub(super) async fn artifacts(store: &Store, now: Timestamp, limit: u32) -> Result<Vec<UnusedArtifact>> {
    let query = format!(
        "SELECT a.id AS id, a.folder AS folder FROM artifacts a WHERE {UNUSED_ARTIFACT} ORDER BY a.id LIMIT $2"
    );
    let found = sqlx::query(sqlx::AssertSqlSafe(query))
        .bind(now.as_microsecond())
        .bind(i64::from(limit))
        .fetch_all(&store.readers)
        .await?;
    found
        .iter()
        .map(|row| Ok(UnusedArtifact { id: Reader(row).parsed("id")?, folder: Reader(row).text("folder")? }))
        .collect()
}

pub(super) async fn purge_artifact(store: &Store, artifact: ArtifactId, now: Timestamp) -> Result<bool> {
    let mut tx = store.write().await?;
    let query = format!("SELECT 1 FROM artifacts a WHERE a.id = $2 AND {UNUSED_ARTIFACT}");
    let unused = sqlx::query(sqlx::AssertSqlSafe(query))
        .bind(now.as_microsecond())
        .bind(artifact.to_string())
        .fetch_optional(&mut *tx)
        .await?
        .is_some();
    if unused {
        forget_artifact(&mut tx, artifact, now).await?;
        tx.commit().await?;
    }
    Ok(unused)
}

/// Reduces an artifact's row to what readers of its history need, without values of environment variables.
async fn forget_artifact(tx: &mut Tx, artifact: ArtifactId, now: Timestamp) -> Result<()> {
    sqlx::query(
        "UPDATE artifacts SET purged_at = $1, deleted_at = coalesce(deleted_at, $1), rootfs_key = NULL, runtime = 'null',
             streams = NULL
         WHERE id = $2 AND purged_at IS NULL",
    )
    .bind(now.as_microsecond())
    .bind(artifact.to_string())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

pub(super) async fn rootfs(store: &Store, unused_since: Timestamp, limit: u32) -> Result<Vec<Rootfs>> {
    let query = format!("SELECT r.* FROM rootfs r WHERE {UNUSED_ROOTFS} ORDER BY r.last_used_at, r.key LIMIT $2");
    let found = sqlx::query(sqlx::AssertSqlSafe(query))
        .bind(unused_since.as_microsecond())
        .bind(i64::from(limit))
        .fetch_all(&store.readers)
        .await?;
    found.iter().map(rows::rootfs).collect()
}

pub(super) async fn purge_rootfs(store: &Store, key: &str, unused_since: Timestamp) -> Result<bool> {
    let query = format!("DELETE FROM rootfs AS r WHERE r.key = $2 AND {UNUSED_ROOTFS}");
    let purge = sqlx::query(sqlx::AssertSqlSafe(query)).bind(unused_since.as_microsecond()).bind(key);
    Ok(store.run(purge).await? > 0)
}

pub(super) async fn known_files(store: &Store) -> Result<KnownFiles> {
    let mut tx = store.read().await?;
    let artifacts = sqlx::query(
        "SELECT folder, streams FROM artifacts WHERE purged_at IS NULL AND lost_at IS NULL
         UNION ALL SELECT folder, streams FROM snapshots",
    )
    .fetch_all(&mut *tx)
    .await?;
    let rootfs = sqlx::query("SELECT file, manifest FROM rootfs").fetch_all(&mut *tx).await?;
    Ok(KnownFiles {
        artifacts: artifacts
            .iter()
            .map(|row| Ok((Reader(row).text("folder")?, Reader(row).streams()?)))
            .collect::<Result<_>>()?,
        rootfs: rootfs
            .iter()
            .map(|row| Ok((Reader(row).text("file")?, Reader(row).optional_text("manifest")?)))
            .collect::<Result<_>>()?,
    })
}

pub(super) async fn allotted(store: &Store, artifacts: &BTreeSet<ArtifactId>) -> Result<BTreeSet<ArtifactId>> {
    let mut tx = store.read().await?;
    let mut found = BTreeSet::new();
    for artifact in artifacts {
        let known = sqlx::query(
            "SELECT 1 FROM builds WHERE artifact_id = $1
             UNION ALL SELECT 1 FROM removed_artifacts WHERE artifact_id = $1",
        )
        .bind(artifact.to_string())
        .fetch_optional(&mut *tx)
        .await?;
        found.extend(known.map(|_| *artifact));
    }
    Ok(found)
}

pub(super) async fn forget_lost(store: &Store, lost: &KnownFiles, now: Timestamp) -> Result<()> {
    let mut tx = store.write().await?;
    // Snapshots first: without them, nothing more keeps their artifacts.
    let by_folder = "SELECT * FROM snapshots WHERE folder = $1";
    let by_rootfs = "SELECT p.* FROM snapshots p JOIN artifacts a ON a.id = p.artifact_id
        JOIN rootfs r ON r.key = a.rootfs_key WHERE r.file = $1";
    let folders = lost.artifacts.keys().map(|name| (by_folder, name));
    for (query, name) in folders.chain(lost.rootfs.keys().map(|name| (by_rootfs, name))) {
        for row in sqlx::query(query).bind(name).fetch_all(&mut *tx).await? {
            snapshots::lose(&mut tx, &row, now).await?;
        }
    }
    let by_folder = "SELECT id FROM artifacts WHERE folder = $1";
    let by_rootfs = "SELECT a.id AS id FROM artifacts a JOIN rootfs r ON r.key = a.rootfs_key WHERE r.file = $1";
    for name in lost.artifacts.keys() {
        for artifact in sqlx::query(by_folder).bind(name).fetch_all(&mut *tx).await? {
            let artifact = Reader(&artifact).parsed("id")?;
            if !keep_root_image(&mut tx, artifact, now).await? {
                forget_artifact(&mut tx, artifact, now).await?;
            }
        }
    }
    for file in lost.rootfs.keys() {
        for artifact in sqlx::query(by_rootfs).bind(file).fetch_all(&mut *tx).await? {
            forget_artifact(&mut tx, Reader(&artifact).parsed("id")?, now).await?;
        }
        sqlx::query("DELETE FROM rootfs_holds WHERE rootfs_key IN (SELECT key FROM rootfs WHERE file = $1)")
            .bind(file)
            .execute(&mut *tx)
            .await?;
        sqlx::query("DELETE FROM rootfs WHERE file = $1").bind(file).execute(&mut *tx).await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Deletes an artifact whose own files are lost, and keeps its root image, if snapshots of sandboxes are on top of that. `false`
/// when there are none.
async fn keep_root_image(tx: &mut Tx, artifact: ArtifactId, now: Timestamp) -> Result<bool> {
    let done = sqlx::query(
        "UPDATE artifacts SET deleted_at = coalesce(deleted_at, $1), lost_at = $1, streams = NULL
         WHERE id = $2 AND purged_at IS NULL
             AND EXISTS (SELECT 1 FROM snapshots p WHERE p.artifact_id = artifacts.id AND p.ended_at IS NULL)",
    )
    .bind(now.as_microsecond())
    .bind(artifact.to_string())
    .execute(&mut **tx)
    .await?;
    Ok(done.rows_affected() > 0)
}
