//! Changes of a template's names: tags, aliases, renaming, visibility.
//!
//! Only the owner may change a template, which is checked in the transaction of the change. To other tenants a private
//! template does not exist, and a public or built-in one cannot be changed.

use jiff::Timestamp;
use nullspace_types::{BuildId, Caller, Tag, TemplateName, TemplateRef};

use super::{
    Store, Tx, claims, one_build,
    rows::{self, Reader, select_artifact},
    templates,
};
use crate::{Alias, BuildStatus, DbError, Resolved, Result, Standing, Template, Visibility};

pub(super) async fn standing(store: &Store, caller: &Caller, reference: &TemplateRef) -> Result<Standing> {
    let mut tx = store.read().await?;
    let template = templates::template_of(&mut tx, caller, reference).await?.ok_or(DbError::NotFound)?;
    standing_of(&mut tx, template).await
}

async fn standing_of(tx: &mut Tx, template: Template) -> Result<Standing> {
    let id = template.id.to_string();
    let tags = templates::tags_of(tx, template.id).await?;
    let artifact = sqlx::query(select_artifact!(
        "AND b.template_id = $1
         ORDER BY EXISTS (SELECT 1 FROM template_tags g
             WHERE g.build_id = b.id AND g.template_id = b.template_id AND g.tag = 'default') DESC,
             a.created_at DESC, a.id DESC LIMIT 1"
    ))
    .bind(&id)
    .fetch_optional(&mut **tx)
    .await?;
    let newest = sqlx::query("SELECT id, artifact_id FROM builds WHERE template_id = $1 ORDER BY id DESC LIMIT 1")
        .bind(&id)
        .fetch_optional(&mut **tx)
        .await?;
    let newest = newest.map(|row| Ok::<_, DbError>((Reader(&row).parsed("id")?, Reader(&row).parsed("artifact_id")?)));
    Ok(Standing {
        template,
        tags,
        artifact: artifact.as_ref().map(rows::artifact).transpose()?,
        newest: newest.transpose()?,
    })
}

/// The template, if the caller may change it.
fn own(caller: &Caller, template: &Template) -> Result<()> {
    if template.is_builtin() {
        Err(DbError::conflict("built-in templates cannot be changed"))
    } else if template.tenant != caller.tenant {
        Err(DbError::NotFound)
    } else {
        Ok(())
    }
}

async fn own_template(tx: &mut Tx, caller: &Caller, reference: &TemplateRef) -> Result<Template> {
    let template = templates::template_of(tx, caller, reference).await?.ok_or(DbError::NotFound)?;
    own(caller, &template)?;
    Ok(template)
}

pub(super) async fn assign_tags(
    store: &Store,
    caller: &Caller,
    reference: &TemplateRef,
    tags: &[Tag],
    now: Timestamp,
) -> Result<Resolved> {
    let mut tx = store.write().await?;
    let mut resolved = templates::resolve_in(&mut tx, caller, reference).await?;
    own(caller, &resolved.template)?;
    point(&mut tx, &resolved.template, resolved.artifact.build, tags, now).await?;
    resolved.tags = templates::tags_of(&mut tx, resolved.template.id).await?;
    tx.commit().await?;
    Ok(resolved)
}

pub(super) async fn promote(
    store: &Store,
    caller: &Caller,
    build: BuildId,
    tags: &[Tag],
    now: Timestamp,
) -> Result<Resolved> {
    let mut tx = store.write().await?;
    let (build, _) = one_build::get_in(&mut tx, caller, build).await?;
    if build.status != BuildStatus::Ready {
        let what = format!("the build is {}: only a ready one can be promoted", build.status.as_str());
        return Err(DbError::conflict(what));
    }
    let Some((template, artifact)) = templates::visible_artifact(&mut tx, caller, build.artifact_id).await? else {
        return Err(DbError::conflict("the build's artifact was deleted: it cannot be promoted"));
    };
    own(caller, &template)?;
    point(&mut tx, &template, build.id, tags, now).await?;
    let tags = templates::tags_of(&mut tx, template.id).await?;
    tx.commit().await?;
    Ok(Resolved { template, tags, artifact })
}

/// Moves tags to a build. A tag that already points there keeps its time.
async fn point(tx: &mut Tx, template: &Template, build: BuildId, tags: &[Tag], now: Timestamp) -> Result<()> {
    for tag in tags {
        sqlx::query(
            "INSERT INTO template_tags (template_id, tag, build_id, moved_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (template_id, tag) DO UPDATE SET build_id = excluded.build_id, moved_at = excluded.moved_at
             WHERE template_tags.build_id != excluded.build_id",
        )
        .bind(template.id.to_string())
        .bind(tag.as_str())
        .bind(build.to_string())
        .bind(now.as_microsecond())
        .execute(&mut **tx)
        .await?;
    }
    Ok(())
}

pub(super) async fn remove_tag(store: &Store, caller: &Caller, reference: &TemplateRef, tag: &Tag) -> Result<()> {
    remove(store, caller, reference, "DELETE FROM template_tags WHERE template_id = $1 AND tag = $2", tag.as_str())
        .await
}

/// Deletes an own template's entry of this name, which must exist.
async fn remove(
    store: &Store,
    caller: &Caller,
    reference: &TemplateRef,
    delete: &'static str,
    name: &str,
) -> Result<()> {
    let mut tx = store.write().await?;
    let template = own_template(&mut tx, caller, reference).await?;
    let done = sqlx::query(delete).bind(template.id.to_string()).bind(name).execute(&mut *tx).await?;
    if done.rows_affected() == 0 {
        return Err(DbError::NotFound);
    }
    tx.commit().await?;
    Ok(())
}

pub(super) async fn set_visibility(
    store: &Store,
    caller: &Caller,
    reference: &TemplateRef,
    visibility: Visibility,
) -> Result<Standing> {
    let mut tx = store.write().await?;
    let mut template = own_template(&mut tx, caller, reference).await?;
    sqlx::query("UPDATE templates SET visibility = $1 WHERE id = $2")
        .bind(visibility.as_str())
        .bind(template.id.to_string())
        .execute(&mut *tx)
        .await?;
    template.visibility = visibility;
    let standing = standing_of(&mut tx, template).await?;
    tx.commit().await?;
    Ok(standing)
}

pub(super) async fn rename(
    store: &Store,
    caller: &Caller,
    reference: &TemplateRef,
    name: &TemplateName,
    now: Timestamp,
) -> Result<Standing> {
    let mut tx = store.write().await?;
    let mut template = own_template(&mut tx, caller, reference).await?;
    if template.name != *name {
        let id = template.id.to_string();
        // One of its own older names may become its name again.
        sqlx::query("DELETE FROM template_aliases WHERE namespace = $1 AND name = $2 AND template_id = $3")
            .bind(&template.namespace)
            .bind(name.as_str())
            .bind(&id)
            .execute(&mut *tx)
            .await?;
        claims::check_free(&mut tx, &template.namespace, name, now).await?;
        sqlx::query("UPDATE templates SET name = $1 WHERE id = $2")
            .bind(name.as_str())
            .bind(&id)
            .execute(&mut *tx)
            .await?;
        sqlx::query("INSERT INTO template_aliases (namespace, name, template_id, created_at) VALUES ($1, $2, $3, $4)")
            .bind(&template.namespace)
            .bind(template.name.as_str())
            .bind(&id)
            .bind(now.as_microsecond())
            .execute(&mut *tx)
            .await?;
        template.name = name.clone();
    }
    let standing = standing_of(&mut tx, template).await?;
    tx.commit().await?;
    Ok(standing)
}

pub(super) async fn aliases(store: &Store, caller: &Caller, reference: &TemplateRef) -> Result<Vec<Alias>> {
    let mut tx = store.read().await?;
    let template = templates::template_of(&mut tx, caller, reference).await?.ok_or(DbError::NotFound)?;
    let found = sqlx::query("SELECT * FROM template_aliases WHERE template_id = $1 ORDER BY name")
        .bind(template.id.to_string())
        .fetch_all(&mut *tx)
        .await?;
    found
        .iter()
        .map(|row| {
            let row = Reader(row);
            Ok(Alias {
                namespace: row.text("namespace")?,
                name: row.parsed("name")?,
                created_at: row.time("created_at")?,
            })
        })
        .collect()
}

pub(super) async fn remove_alias(
    store: &Store,
    caller: &Caller,
    reference: &TemplateRef,
    alias: &TemplateName,
) -> Result<()> {
    let delete = "DELETE FROM template_aliases WHERE template_id = $1 AND name = $2";
    remove(store, caller, reference, delete, alias.as_str()).await
}
