//! Claims of names. A claim reserves a name in its owner's namespace until a build with its token uses it, its owner releases
//! it, or it expires.

use jiff::Timestamp;
use nullspace_types::{Caller, TemplateName};

use super::{Store, Tx, rows::Reader};
use crate::{ClaimHash, DbError, NewClaim, Result};

/// Most claims of one tenant at a time.
const MAX_CLAIMS: u32 = 1000;

/// A conflict if a template, an alias or a valid claim has the name.
pub(super) async fn check_free(tx: &mut Tx, namespace: &str, name: &TemplateName, now: Timestamp) -> Result<()> {
    check_no_template(tx, namespace, name).await?;
    check_no_alias(tx, namespace, name).await?;
    if holder(tx, namespace, name, now).await?.is_some() {
        return Err(DbError::conflict(format!("the name {namespace}/{name} is reserved")));
    }
    Ok(())
}

async fn check_no_template(tx: &mut Tx, namespace: &str, name: &TemplateName) -> Result<()> {
    let taken = sqlx::query("SELECT 1 FROM templates WHERE namespace = $1 AND name = $2 AND deleted_at IS NULL")
        .bind(namespace)
        .bind(name.as_str())
        .fetch_optional(&mut **tx)
        .await?;
    match taken {
        Some(_) => Err(DbError::conflict(format!("there is a template {namespace}/{name}"))),
        None => Ok(()),
    }
}

/// A conflict when the name is an alias.
pub(super) async fn check_no_alias(tx: &mut Tx, namespace: &str, name: &TemplateName) -> Result<()> {
    let row = sqlx::query(
        "SELECT t.name AS name FROM template_aliases a JOIN templates t ON t.id = a.template_id
         WHERE a.namespace = $1 AND a.name = $2",
    )
    .bind(namespace)
    .bind(name.as_str())
    .fetch_optional(&mut **tx)
    .await?;
    match row {
        None => Ok(()),
        Some(row) => {
            let present = Reader(&row).text("name")?;
            Err(DbError::conflict(format!(
                "{namespace}/{name} is an alias of {namespace}/{present}: use that name, or remove the alias"
            )))
        }
    }
}

/// Hash of the token of the claim that reserves the name.
async fn holder(tx: &mut Tx, namespace: &str, name: &TemplateName, now: Timestamp) -> Result<Option<Vec<u8>>> {
    Ok(sqlx::query_scalar("SELECT token_hash FROM name_claims WHERE namespace = $1 AND name = $2 AND expires_at > $3")
        .bind(namespace)
        .bind(name.as_str())
        .bind(now.as_microsecond())
        .fetch_optional(&mut **tx)
        .await?)
}

/// Lets a build use a name. A claim on the name must be the build's own, and is used up.
pub(super) async fn spend(
    tx: &mut Tx,
    namespace: &str,
    name: &TemplateName,
    claim: Option<ClaimHash>,
    now: Timestamp,
) -> Result<()> {
    let held = holder(tx, namespace, name, now).await?;
    match (held, claim) {
        (None, None) => Ok(()),
        (Some(held), Some(claim)) if held == claim.as_bytes() => {
            sqlx::query("DELETE FROM name_claims WHERE token_hash = $1").bind(held).execute(&mut **tx).await?;
            Ok(())
        }
        (Some(_), None) => {
            Err(DbError::conflict(format!("the name {namespace}/{name} is reserved: give its claim_token")))
        }
        (_, Some(_)) => Err(DbError::conflict(format!("the claim_token is not for the name {namespace}/{name}"))),
    }
}

pub(super) async fn reserve(store: &Store, caller: &Caller, claim: NewClaim, now: Timestamp) -> Result<()> {
    let mut tx = store.write().await?;
    forget_lapsed(&mut tx, now).await?;
    check_free(&mut tx, &caller.namespace, &claim.name, now).await?;
    let held: i64 = sqlx::query_scalar("SELECT count(*) FROM name_claims WHERE tenant_id = $1")
        .bind(caller.tenant.to_string())
        .fetch_one(&mut *tx)
        .await?;
    if held >= i64::from(MAX_CLAIMS) {
        return Err(DbError::LimitReached { what: "too many reserved names", limit: MAX_CLAIMS });
    }
    sqlx::query(
        "INSERT INTO name_claims (token_hash, tenant_id, namespace, name, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(claim.token.as_bytes())
    .bind(caller.tenant.to_string())
    .bind(&caller.namespace)
    .bind(claim.name.as_str())
    .bind(now.as_microsecond())
    .bind(claim.expires_at.as_microsecond())
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(())
}

async fn forget_lapsed(tx: &mut Tx, now: Timestamp) -> Result<()> {
    sqlx::query("DELETE FROM name_claims WHERE expires_at <= $1").bind(now.as_microsecond()).execute(&mut **tx).await?;
    Ok(())
}

pub(super) async fn claimed_name(
    store: &Store,
    caller: &Caller,
    token: ClaimHash,
    now: Timestamp,
) -> Result<TemplateName> {
    let row = sqlx::query("SELECT name FROM name_claims WHERE token_hash = $1 AND tenant_id = $2 AND expires_at > $3")
        .bind(token.as_bytes())
        .bind(caller.tenant.to_string())
        .bind(now.as_microsecond())
        .fetch_optional(&store.readers)
        .await?
        .ok_or(DbError::NotFound)?;
    Reader(&row).parsed("name")
}

pub(super) async fn release(store: &Store, caller: &Caller, token: ClaimHash, now: Timestamp) -> Result<()> {
    let mut tx = store.write().await?;
    forget_lapsed(&mut tx, now).await?;
    let done = sqlx::query("DELETE FROM name_claims WHERE token_hash = $1 AND tenant_id = $2")
        .bind(token.as_bytes())
        .bind(caller.tenant.to_string())
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    if done.rows_affected() == 0 { Err(DbError::NotFound) } else { Ok(()) }
}
