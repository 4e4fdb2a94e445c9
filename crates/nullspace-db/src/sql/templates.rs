//! Templates: resolving references for a caller.

use std::collections::BTreeMap;

use jiff::Timestamp;
use nullspace_types::{
    ArtifactId, BuildId, Caller, SYSTEM_NAMESPACE, Selector, Tag, TemplateId, TemplateName, TemplateRef, TenantId,
};

use super::{
    Store, Tx, finish,
    rows::{self, Reader, select_artifact, select_stored_artifact, select_template},
};
use crate::{Artifact, CancelRequest, DbError, Resolved, Result, TagTarget, Template, Visibility};

/// The tag in other services' references that means `default` here.
const LATEST: &str = "latest";

pub(super) async fn resolve(store: &Store, caller: &Caller, reference: &TemplateRef) -> Result<Resolved> {
    resolve_in(&mut store.read().await?, caller, reference).await
}

pub(super) async fn resolve_in(tx: &mut Tx, caller: &Caller, reference: &TemplateRef) -> Result<Resolved> {
    match reference {
        TemplateRef::Artifact(id) => {
            let (template, artifact) = visible_artifact(tx, caller, *id).await?.ok_or(DbError::NotFound)?;
            let tags = tags_of(tx, template.id).await?;
            Ok(Resolved { template, tags, artifact })
        }
        TemplateRef::Named { selector, .. } => {
            for template in candidates(tx, caller, reference).await? {
                let tags = tags_of(tx, template.id).await?;
                if let Some(build) = select(&tags, selector.as_ref(), reference.is_system())
                    && let Some(artifact) = artifact_of_build(tx, build, template.id).await?
                {
                    return Ok(Resolved { template, tags, artifact });
                }
            }
            Err(DbError::NotFound)
        }
    }
}

/// The build that the selector means. The published client writes `nullspace/x` without a tag as `nullspace/x:latest`, so
/// there `latest` means `default` when no tag has that name.
fn select(tags: &[TagTarget], selector: Option<&Selector>, is_system: bool) -> Option<BuildId> {
    let find = |name: &str| tags.iter().find(|target| target.tag.as_str() == name).map(|target| target.build);
    match selector {
        None => find(Tag::DEFAULT),
        Some(Selector::Build(build)) => Some(*build),
        Some(Selector::Tag(tag)) if is_system && tag.as_str() == LATEST => find(LATEST).or_else(|| find(Tag::DEFAULT)),
        Some(Selector::Tag(tag)) => find(tag.as_str()),
    }
}

/// The templates that a named reference may mean, the first choice first. All are visible to the caller.
async fn candidates(tx: &mut Tx, caller: &Caller, reference: &TemplateRef) -> Result<Vec<Template>> {
    let TemplateRef::Named { namespace, name, .. } = reference else {
        return Ok(Vec::new());
    };
    let own = caller.namespace.as_str();
    let namespaces = match namespace.as_deref() {
        None => vec![own, SYSTEM_NAMESPACE],
        Some(SYSTEM_NAMESPACE) => vec![SYSTEM_NAMESPACE, own],
        Some(other) => vec![other],
    };
    let mut found = Vec::new();
    for namespace in namespaces {
        if let Some(template) = by_name(tx, namespace, name).await?
            && sees(caller, &template)
            && found.iter().all(|earlier: &Template| earlier.id != template.id)
        {
            found.push(template);
        }
    }
    Ok(found)
}

fn sees(caller: &Caller, template: &Template) -> bool {
    template.tenant == caller.tenant || template.is_builtin() || template.visibility == Visibility::Public
}

/// The template of a reference, even if it has no usable artifact. By an artifact's id, its owner also finds it while the
/// build runs or after it failed.
pub(super) async fn template_of(tx: &mut Tx, caller: &Caller, reference: &TemplateRef) -> Result<Option<Template>> {
    match reference {
        TemplateRef::Named { selector: None, .. } => Ok(candidates(tx, caller, reference).await?.into_iter().next()),
        TemplateRef::Named { .. } => match resolve_in(tx, caller, reference).await {
            Ok(resolved) => Ok(Some(resolved.template)),
            Err(DbError::NotFound) => Ok(None),
            Err(error) => Err(error),
        },
        TemplateRef::Artifact(id) => {
            if let Some((template, _)) = visible_artifact(tx, caller, *id).await? {
                return Ok(Some(template));
            }
            let row = sqlx::query(select_template!(
                "WHERE t.deleted_at IS NULL
                   AND t.id = (SELECT b.template_id FROM builds b WHERE b.artifact_id = $1 AND b.tenant_id = $2)"
            ))
            .bind(id.to_string())
            .bind(caller.tenant.to_string())
            .fetch_optional(&mut **tx)
            .await?;
            row.as_ref().map(rows::template).transpose()
        }
    }
}

/// Finds a template by name or alias. `namespace` is a slug, or the UUID of a tenant, which means its default namespace.
async fn by_name(tx: &mut Tx, namespace: &str, name: &TemplateName) -> Result<Option<Template>> {
    let owner = uuid::Uuid::try_parse(namespace).ok().map(|uuid| TenantId::from_uuid(uuid).to_string());
    let row = sqlx::query(select_template!(
        "WHERE t.deleted_at IS NULL AND (n.slug = $2 OR (n.tenant_id = $3 AND n.is_default = 1))
           AND (t.name = $1 OR t.id = (
               SELECT a.template_id FROM template_aliases a WHERE a.namespace = t.namespace AND a.name = $1))
         ORDER BY t.name != $1 LIMIT 1"
    ))
    .bind(name.as_str())
    .bind(namespace)
    .bind(owner)
    .fetch_optional(&mut **tx)
    .await?;
    row.as_ref().map(rows::template).transpose()
}

pub(super) async fn tags_of(tx: &mut Tx, template: TemplateId) -> Result<Vec<TagTarget>> {
    let found = sqlx::query("SELECT tag, build_id, moved_at FROM template_tags WHERE template_id = $1 ORDER BY tag")
        .bind(template.to_string())
        .fetch_all(&mut **tx)
        .await?;
    found.iter().map(rows::tag_target).collect()
}

async fn artifact_of_build(tx: &mut Tx, build: BuildId, template: TemplateId) -> Result<Option<Artifact>> {
    let row = sqlx::query(select_artifact!("AND a.build_id = $1 AND b.template_id = $2"))
        .bind(build.to_string())
        .bind(template.to_string())
        .fetch_optional(&mut **tx)
        .await?;
    row.as_ref().map(rows::artifact).transpose()
}

/// An artifact whose files are there, for any caller; also one that was deleted.
pub(super) async fn stored_artifact(tx: &mut Tx, id: ArtifactId) -> Result<Option<Artifact>> {
    let row = sqlx::query(select_stored_artifact!("WHERE a.purged_at IS NULL AND a.id = $1"))
        .bind(id.to_string())
        .fetch_optional(&mut **tx)
        .await?;
    row.as_ref().map(rows::artifact).transpose()
}

/// A usable artifact, for any caller.
pub(super) async fn usable_artifact(tx: &mut Tx, id: ArtifactId) -> Result<Option<Artifact>> {
    let row = sqlx::query(select_artifact!("AND a.id = $1")).bind(id.to_string()).fetch_optional(&mut **tx).await?;
    row.as_ref().map(rows::artifact).transpose()
}

/// A usable artifact that this caller may see, with its template.
pub(super) async fn visible_artifact(
    tx: &mut Tx,
    caller: &Caller,
    id: ArtifactId,
) -> Result<Option<(Template, Artifact)>> {
    let Some(row) =
        sqlx::query(select_artifact!("AND a.id = $1")).bind(id.to_string()).fetch_optional(&mut **tx).await?
    else {
        return Ok(None);
    };
    let artifact = rows::artifact(&row)?;
    let template = sqlx::query(select_template!("WHERE t.id = $1 AND t.deleted_at IS NULL"))
        .bind(Reader(&row).text("template_id")?)
        .fetch_optional(&mut **tx)
        .await?;
    let template = template.as_ref().map(rows::template).transpose()?;
    Ok(template.filter(|template| sees(caller, template)).map(|template| (template, artifact)))
}

pub(super) async fn list(store: &Store, caller: &Caller) -> Result<Vec<Resolved>> {
    let mut tx = store.read().await?;
    let tenant = caller.tenant.to_string();
    let templates = sqlx::query(select_template!(
        "WHERE t.deleted_at IS NULL AND (t.tenant_id = $1 OR n.kind = 'system') ORDER BY t.namespace, t.name"
    ))
    .bind(&tenant)
    .fetch_all(&mut *tx)
    .await?;
    let tag_rows = sqlx::query(
        "SELECT g.* FROM template_tags g JOIN templates t ON t.id = g.template_id
         JOIN namespaces n ON n.slug = t.namespace
         WHERE t.deleted_at IS NULL AND (t.tenant_id = $1 OR n.kind = 'system') ORDER BY g.tag",
    )
    .bind(&tenant)
    .fetch_all(&mut *tx)
    .await?;
    let mut tags: BTreeMap<TemplateId, Vec<TagTarget>> = BTreeMap::new();
    for row in &tag_rows {
        tags.entry(Reader(row).parsed("template_id")?).or_default().push(rows::tag_target(row)?);
    }
    // What stands for the template: where `default` points, else its newest usable artifact.
    let artifact_rows = sqlx::query(select_artifact!(
        "AND a.id = (
             SELECT a2.id FROM artifacts a2 JOIN builds b2 ON b2.id = a2.build_id
             LEFT JOIN template_tags g2
                 ON g2.build_id = b2.id AND g2.template_id = b2.template_id AND g2.tag = 'default'
             WHERE b2.template_id = b.template_id AND a2.deleted_at IS NULL
             ORDER BY g2.tag IS NULL, a2.created_at DESC, a2.id DESC LIMIT 1)
         AND b.template_id IN (
             SELECT t.id FROM templates t JOIN namespaces n ON n.slug = t.namespace
             WHERE t.deleted_at IS NULL AND (t.tenant_id = $1 OR n.kind = 'system'))"
    ))
    .bind(&tenant)
    .fetch_all(&mut *tx)
    .await?;
    let mut artifacts: BTreeMap<TemplateId, Artifact> = BTreeMap::new();
    for row in &artifact_rows {
        artifacts.insert(Reader(row).parsed("template_id")?, rows::artifact(row)?);
    }
    let mut listed = Vec::new();
    for row in &templates {
        let template = rows::template(row)?;
        if let Some(artifact) = artifacts.remove(&template.id) {
            let tags = tags.remove(&template.id).unwrap_or_default();
            listed.push(Resolved { template, tags, artifact });
        }
    }
    Ok(listed)
}

pub(super) async fn delete(
    store: &Store,
    caller: &Caller,
    reference: &TemplateRef,
    cancel: CancelRequest,
    now: Timestamp,
) -> Result<()> {
    let mut tx = store.write().await?;
    let template = template_of(&mut tx, caller, reference).await?.ok_or(DbError::NotFound)?;
    if template.is_builtin() {
        return Err(DbError::conflict("built-in templates cannot be deleted"));
    }
    if template.tenant != caller.tenant {
        return Err(DbError::NotFound);
    }
    let id = template.id.to_string();
    let micros = now.as_microsecond();
    finish::cancel_unfinished(&mut tx, template.id, &cancel, now).await?;
    for names in
        ["DELETE FROM template_tags WHERE template_id = $1", "DELETE FROM template_aliases WHERE template_id = $1"]
    {
        sqlx::query(names).bind(&id).execute(&mut *tx).await?;
    }
    sqlx::query(
        "UPDATE artifacts SET deleted_at = $1
         WHERE deleted_at IS NULL AND build_id IN (SELECT id FROM builds WHERE template_id = $2)",
    )
    .bind(micros)
    .bind(&id)
    .execute(&mut *tx)
    .await?;
    sqlx::query("UPDATE templates SET deleted_at = $1 WHERE id = $2").bind(micros).bind(&id).execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(())
}
