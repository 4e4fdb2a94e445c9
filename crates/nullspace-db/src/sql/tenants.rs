//! Tenants and namespaces.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{BuildId, Caller, MAX_NAME_CHARS, SYSTEM_NAMESPACE, TenantId};
use sqlx::Row as _;

use super::{DbRow, Store, Tx, rows::Reader};
use crate::{DbError, Namespace, NamespaceKind, Result, Tenant, Tenants};

#[async_trait]
impl Tenants for Store {
    async fn ensure_tenant(&self, name: &str, kind: NamespaceKind, now: Timestamp) -> Result<Tenant> {
        ensure(self, name, kind, now).await
    }

    async fn list_tenants(&self) -> Result<Vec<Tenant>> {
        list(self).await
    }

    async fn get_namespace(&self, caller: &Caller, slug: &str) -> Result<Namespace> {
        get_namespace(self, caller, slug).await
    }
}

macro_rules! select_tenant {
    ($rest:literal) => {
        concat!(
            "SELECT t.id AS id, t.name AS name, t.created_at AS created_at, n.slug AS slug, n.kind AS kind
             FROM tenants t JOIN namespaces n ON n.tenant_id = t.id AND n.is_default = 1 ",
            $rest
        )
    };
}

fn tenant(row: &DbRow) -> Result<Tenant> {
    let row = Reader(row);
    let id = row.parsed("id")?;
    Ok(Tenant {
        id,
        name: row.text("name")?,
        namespace: Namespace { slug: row.text("slug")?, kind: row.parsed("kind")?, owner: id },
        created_at: row.time("created_at")?,
    })
}

pub(super) async fn ensure(store: &Store, name: &str, kind: NamespaceKind, now: Timestamp) -> Result<Tenant> {
    let name = name.trim();
    if name.is_empty() || name.chars().count() > MAX_NAME_CHARS || name.chars().any(char::is_control) {
        return Err(DbError::conflict("a tenant's name has 1 to 128 characters, none of them a control character"));
    }
    let mut tx = store.write().await?;
    if let Some(row) = sqlx::query(select_tenant!("WHERE t.name = $1")).bind(name).fetch_optional(&mut *tx).await? {
        let found = tenant(&row)?;
        if found.namespace.kind == kind {
            return Ok(found);
        }
        return Err(DbError::conflict(format!("the tenant {name} exists and is of another kind")));
    }
    let id = TenantId::new();
    sqlx::query("INSERT INTO tenants (id, name, created_at) VALUES ($1, $2, $3)")
        .bind(id.to_string())
        .bind(name)
        .bind(now.as_microsecond())
        .execute(&mut *tx)
        .await?;
    let slug = match kind {
        NamespaceKind::System => SYSTEM_NAMESPACE.to_owned(),
        NamespaceKind::User | NamespaceKind::Deployment => free_slug(&mut tx, name).await?,
    };
    let inserted = sqlx::query(
        "INSERT INTO namespaces (slug, kind, tenant_id, is_default, created_at) VALUES ($1, $2, $3, 1, $4)
         ON CONFLICT (slug) DO NOTHING",
    )
    .bind(&slug)
    .bind(kind.as_str())
    .bind(id.to_string())
    .bind(now.as_microsecond())
    .execute(&mut *tx)
    .await?;
    if inserted.rows_affected() == 0 {
        return Err(DbError::conflict(format!("the namespace {slug} has an owner")));
    }
    let row = sqlx::query(select_tenant!("WHERE t.id = $1")).bind(id.to_string()).fetch_one(&mut *tx).await?;
    tx.commit().await?;
    tenant(&row)
}

async fn free_slug(tx: &mut Tx, name: &str) -> Result<String> {
    let base = slug_of(name);
    for number in 1_u32.. {
        let slug = if number == 1 { base.clone() } else { format!("{base}-{number}") };
        // `nullspace/x` means the built-ins and `<uuid>/x` a tenant by its id: neither may be somebody's slug.
        let reserved = slug == SYSTEM_NAMESPACE || uuid::Uuid::try_parse(&slug).is_ok();
        let taken = sqlx::query("SELECT 1 FROM namespaces WHERE slug = $1").bind(&slug).fetch_optional(&mut **tx);
        if !reserved && taken.await?.is_none() {
            return Ok(slug);
        }
    }
    Err(DbError::conflict("no namespace is left for this name"))
}

/// Makes a slug of the name: lower-case letters and digits, and one hyphen for all other characters in a row.
fn slug_of(name: &str) -> String {
    let words: Vec<String> = name
        .to_ascii_lowercase()
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(ToOwned::to_owned)
        .collect();
    // Room for a number behind it.
    let slug: String = words.join("-").chars().take(MAX_NAME_CHARS - 16).collect();
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() { "tenant".to_owned() } else { slug.to_owned() }
}

pub(super) async fn list(store: &Store) -> Result<Vec<Tenant>> {
    let rows = sqlx::query(select_tenant!("ORDER BY t.name")).fetch_all(&store.readers).await?;
    rows.iter().map(tenant).collect()
}

pub(super) async fn get_namespace(store: &Store, caller: &Caller, slug: &str) -> Result<Namespace> {
    let row = sqlx::query(
        "SELECT n.slug AS slug, n.kind AS kind, n.tenant_id AS tenant_id FROM namespaces n
         WHERE n.slug = $1 AND (n.tenant_id = $2 OR n.kind IN ('system', 'deployment') OR EXISTS (
             SELECT 1 FROM templates t
             WHERE t.namespace = n.slug AND t.visibility = 'public' AND t.deleted_at IS NULL))",
    )
    .bind(slug)
    .bind(caller.tenant.to_string())
    .fetch_optional(&store.readers)
    .await?
    .ok_or(DbError::NotFound)?;
    let row = Reader(&row);
    Ok(Namespace { slug: row.text("slug")?, kind: row.parsed("kind")?, owner: row.parsed("tenant_id")? })
}

/// The tenant that owns a build.
pub(super) async fn caller_of(tx: &mut Tx, build: BuildId) -> Result<Caller> {
    let row = sqlx::query(
        "SELECT b.tenant_id, n.slug FROM builds b
         JOIN namespaces n ON n.tenant_id = b.tenant_id AND n.is_default = 1 WHERE b.id = $1",
    )
    .bind(build.to_string())
    .fetch_optional(&mut **tx)
    .await?
    .ok_or(DbError::NotFound)?;
    let tenant: String = row.try_get(0)?;
    Ok(Caller {
        tenant: tenant.parse().map_err(|_| DbError::corrupt("builds.tenant_id"))?,
        namespace: row.try_get(1)?,
        key: None,
        read_only: false,
    })
}
