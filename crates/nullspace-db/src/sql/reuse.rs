//! Root images, layers and artifacts that a build finds, records and keeps.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{ArtifactId, BuildId, Rootfs, Streams};

use super::{
    Store, Tx, one_build,
    rows::{self, Reader, integer},
    templates, tenants,
};
use crate::{Artifact, DbError, Lease, Result, Reuse};

#[async_trait]
impl Reuse for Store {
    async fn find_rootfs(&self, lease: &Lease, key: &str, now: Timestamp) -> Result<Option<Rootfs>> {
        find_rootfs(self, lease, key, now).await
    }

    async fn put_rootfs(&self, lease: &Lease, rootfs: Rootfs, now: Timestamp) -> Result<Rootfs> {
        put_rootfs(self, lease, rootfs, None, now).await
    }

    async fn find_layer(&self, lease: &Lease, layer_key: &str, now: Timestamp) -> Result<Option<Rootfs>> {
        find_layer(self, lease, layer_key, now).await
    }

    async fn put_layer(&self, lease: &Lease, rootfs: Rootfs, layer_key: &str, now: Timestamp) -> Result<Rootfs> {
        put_rootfs(self, lease, rootfs, Some(layer_key), now).await
    }

    async fn hold_artifact(&self, lease: &Lease, artifact: ArtifactId) -> Result<Artifact> {
        hold_artifact(self, lease, artifact).await
    }

    async fn find_final(&self, lease: &Lease, key: &str) -> Result<Option<Artifact>> {
        find_final(self, lease, key).await
    }

    async fn similar_snapshots(&self, build: BuildId) -> Result<Vec<Streams>> {
        similar_snapshots(self, build).await
    }
}

pub(super) async fn find_rootfs(store: &Store, lease: &Lease, key: &str, now: Timestamp) -> Result<Option<Rootfs>> {
    let mut tx = store.write().await?;
    one_build::fence(&mut tx, lease).await?;
    let found = hold_rootfs(&mut tx, lease, key, now).await?;
    tx.commit().await?;
    Ok(found)
}

pub(super) async fn find_layer(
    store: &Store,
    lease: &Lease,
    layer_key: &str,
    now: Timestamp,
) -> Result<Option<Rootfs>> {
    let newest = "SELECT key FROM rootfs WHERE layer_key = $1 ORDER BY created_at DESC, key LIMIT 1";
    let mut tx = store.write().await?;
    one_build::fence(&mut tx, lease).await?;
    let Some(row) = sqlx::query(newest).bind(layer_key).fetch_optional(&mut *tx).await? else { return Ok(None) };
    let found = hold_rootfs(&mut tx, lease, &Reader(&row).text("key")?, now).await?;
    tx.commit().await?;
    Ok(found)
}

pub(super) async fn put_rootfs(
    store: &Store,
    lease: &Lease,
    rootfs: Rootfs,
    layer_key: Option<&str>,
    now: Timestamp,
) -> Result<Rootfs> {
    let mut tx = store.write().await?;
    one_build::fence(&mut tx, lease).await?;
    sqlx::query(
        "INSERT INTO rootfs (key, file, bytes, manifest, info, created_at, last_used_at, layer_key)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (key) DO NOTHING",
    )
    .bind(&rootfs.key)
    .bind(&rootfs.file)
    .bind(integer(rootfs.bytes)?)
    .bind(&rootfs.manifest)
    .bind(rootfs.info.to_string())
    .bind(now.as_microsecond())
    .bind(now.as_microsecond())
    .bind(layer_key)
    .execute(&mut *tx)
    .await?;
    let kept = hold_rootfs(&mut tx, lease, &rootfs.key, now).await?.ok_or(DbError::NotFound)?;
    tx.commit().await?;
    Ok(kept)
}

async fn hold_rootfs(tx: &mut Tx, lease: &Lease, key: &str, now: Timestamp) -> Result<Option<Rootfs>> {
    let row = sqlx::query("UPDATE rootfs SET last_used_at = max(last_used_at, $1) WHERE key = $2 RETURNING *")
        .bind(now.as_microsecond())
        .bind(key)
        .fetch_optional(&mut **tx)
        .await?;
    let Some(row) = row else {
        return Ok(None);
    };
    sqlx::query("INSERT INTO rootfs_holds (rootfs_key, build_id) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(key)
        .bind(lease.build.to_string())
        .execute(&mut **tx)
        .await?;
    Ok(Some(rows::rootfs(&row)?))
}

/// Keeps an artifact while the build runs.
async fn hold(tx: &mut Tx, lease: &Lease, artifact: ArtifactId) -> Result<()> {
    sqlx::query("INSERT INTO artifact_holds (artifact_id, build_id) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(artifact.to_string())
        .bind(lease.build.to_string())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

pub(super) async fn hold_artifact(store: &Store, lease: &Lease, artifact: ArtifactId) -> Result<Artifact> {
    let mut tx = store.write().await?;
    one_build::fence(&mut tx, lease).await?;
    let caller = tenants::caller_of(&mut tx, lease.build).await?;
    let (_, found) = templates::visible_artifact(&mut tx, &caller, artifact).await?.ok_or(DbError::NotFound)?;
    hold(&mut tx, lease, artifact).await?;
    tx.commit().await?;
    Ok(found)
}

pub(super) async fn find_final(store: &Store, lease: &Lease, key: &str) -> Result<Option<Artifact>> {
    // Mostly there is none: looked for without the write lock first.
    let id =
        "SELECT id FROM artifacts WHERE final_key = $1 AND deleted_at IS NULL ORDER BY created_at DESC, id LIMIT 1";
    if sqlx::query(id).bind(key).fetch_optional(&store.readers).await?.is_none() {
        return Ok(None);
    }
    let mut tx = store.write().await?;
    one_build::fence(&mut tx, lease).await?;
    let Some(row) = sqlx::query(id).bind(key).fetch_optional(&mut *tx).await? else { return Ok(None) };
    let artifact: ArtifactId = Reader(&row).parsed("id")?;
    let Some(found) = templates::usable_artifact(&mut tx, artifact).await? else { return Ok(None) };
    hold(&mut tx, lease, artifact).await?;
    tx.commit().await?;
    Ok(Some(found))
}

pub(super) async fn similar_snapshots(store: &Store, build: BuildId) -> Result<Vec<Streams>> {
    // Another tenant's are left out: what a snapshot adds to the store would tell what theirs hold.
    let like = |what: &str| {
        format!(
            "SELECT * FROM (SELECT a.streams AS streams FROM artifacts a JOIN builds b ON b.id = a.build_id
                            JOIN builds own ON own.id = $1
                            WHERE a.streams IS NOT NULL AND a.deleted_at IS NULL AND {what}
                            ORDER BY a.created_at DESC, a.id LIMIT 1) AS newest"
        )
    };
    let system = "b.namespace IN (SELECT slug FROM namespaces WHERE kind = 'system')";
    let query = [like("b.template_id = own.template_id"), like("a.tenant_id = own.tenant_id"), like(system)];
    let rows = sqlx::query(sqlx::AssertSqlSafe(query.join(" UNION ")))
        .bind(build.to_string())
        .fetch_all(&store.readers)
        .await?;
    Ok(rows.iter().map(|row| Reader(row).streams()).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}
