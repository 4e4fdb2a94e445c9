//! Names of templates: tags, aliases, renames, visibility, claims.

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use nullspace_api::{
    ErrorResponseCode, TemplateAliasInfo, TemplateInfo, TemplateNameClaim, TemplateNamespaceInfo,
    TemplateNamespaceKind, TemplateTagInfo, TemplateVisibility,
};
use nullspace_db::{ClaimHash, ClaimToken, DbError, NamespaceKind, NewClaim, Standing, Visibility};
use nullspace_service::{Names, Warned};
use nullspace_types::{Caller, Tag, TemplateName, TemplateRef};

use super::templates::parse;
use super::wire;
use crate::error::{Error, Result, Stored, internal};
use crate::{Control, Inner};

/// A claim of a name expires after this.
const CLAIM_TTL: SignedDuration = SignedDuration::from_hours(1);
/// Most tags in one request.
const MAX_TAGS: usize = 64;

#[async_trait]
impl Names for Control {
    async fn template_tags(&self, caller: &Caller, reference: &str) -> Result<Vec<TemplateTagInfo>> {
        let standing = self.inner.standing(caller, reference).await?;
        Ok(standing
            .tags
            .into_iter()
            .map(|target| TemplateTagInfo {
                tag: target.tag.to_string(),
                build_id: target.build.to_string(),
                created_at: target.moved_at.into(),
            })
            .collect())
    }

    async fn assign_tags(&self, caller: &Caller, reference: &str, tags: Vec<String>) -> Result<Warned<TemplateInfo>> {
        let parsed = parse(reference)?;
        let tags = parse_tags(&tags)?;
        let resolved = self.inner.db.assign_tags(caller, &parsed, &tags, Timestamp::now()).await;
        let resolved = resolved.or_missing(|| Error::template_not_found(reference))?;
        self.inner.collect.notify_one();
        let info = wire::template(&resolved).stored()?;
        self.inner.publishes_build(caller, resolved.artifact.build, info).await.stored()
    }

    async fn remove_tag(&self, caller: &Caller, reference: &str, tag: &str) -> Result<()> {
        let parsed = parse(reference)?;
        let missing = || {
            Error::new(ErrorResponseCode::TemplateNotFound, format!("there is no template {reference} with tag {tag}"))
        };
        let tag: Tag = tag.parse().map_err(|_| missing())?;
        let removed = self.inner.db.remove_tag(caller, &parsed, &tag).await;
        removed.or_missing(missing)?;
        self.inner.collect.notify_one();
        Ok(())
    }

    async fn template_aliases(&self, caller: &Caller, reference: &str) -> Result<Vec<TemplateAliasInfo>> {
        let parsed = parse(reference)?;
        let aliases = self.inner.db.list_aliases(caller, &parsed).await;
        let aliases = aliases.or_missing(|| Error::template_not_found(reference))?;
        Ok(aliases
            .into_iter()
            .map(|alias| TemplateAliasInfo {
                alias_ref: format!("{}/{}", alias.namespace, alias.name),
                created_at: alias.created_at.into(),
            })
            .collect())
    }

    async fn remove_alias(&self, caller: &Caller, reference: &str, alias: &str) -> Result<()> {
        let parsed = parse(reference)?;
        let missing = || {
            Error::new(
                ErrorResponseCode::TemplateNotFound,
                format!("there is no template {reference} with alias {alias}"),
            )
        };
        let Ok(TemplateRef::Named { namespace, name, selector: None }) = alias.parse() else { return Err(missing()) };
        if namespace.is_some_and(|namespace| namespace != caller.namespace) {
            return Err(missing());
        }
        let removed = self.inner.db.remove_alias(caller, &parsed, &name).await;
        removed.or_missing(missing)
    }

    async fn rename_template(&self, caller: &Caller, reference: &str, new_name: &str) -> Result<TemplateInfo> {
        let parsed = parse(reference)?;
        let name = own_name("new_name", caller, new_name)?;
        let renamed = self.inner.db.rename_template(caller, &parsed, &name, Timestamp::now()).await;
        let renamed = renamed.or_missing(|| Error::template_not_found(reference))?;
        whole(&renamed)
    }

    async fn set_visibility(
        &self,
        caller: &Caller,
        reference: &str,
        visibility: TemplateVisibility,
    ) -> Result<Warned<TemplateInfo>> {
        let parsed = parse(reference)?;
        let visibility = match visibility {
            TemplateVisibility::Private => Visibility::Private,
            TemplateVisibility::Public => Visibility::Public,
        };
        let changed = self.inner.db.set_visibility(caller, &parsed, visibility).await;
        let changed = changed.or_missing(|| Error::template_not_found(reference))?;
        self.inner.publishes(caller, changed.template.id, whole(&changed)?).await.stored()
    }

    async fn reserve_name(&self, caller: &Caller, reference: &str) -> Result<TemplateNameClaim> {
        let name = own_name("template_ref", caller, reference)?;
        let now = Timestamp::now();
        let token = ClaimToken::generate();
        let expires_at = now + CLAIM_TTL;
        let claim = NewClaim { name: name.clone(), token: token.hash(), expires_at };
        self.inner.db.reserve_name(caller, claim, now).await.stored()?;
        Ok(TemplateNameClaim {
            claim_token: token.expose().to_owned(),
            canonical_ref: format!("{}/{name}", caller.namespace),
            expires_at: expires_at.into(),
        })
    }

    async fn release_name(&self, caller: &Caller, token: &str) -> Result<()> {
        let released = self.inner.db.release_name(caller, ClaimHash::of(token), Timestamp::now()).await;
        released.or_missing(claim_not_found)
    }

    async fn namespace(&self, caller: &Caller, slug: &str) -> Result<TemplateNamespaceInfo> {
        let missing = || Error::new(ErrorResponseCode::NotFound, format!("there is no namespace {slug}"));
        let found = self.inner.db.get_namespace(caller, slug).await;
        let namespace = found.or_missing(missing)?;
        Ok(TemplateNamespaceInfo {
            is_default: namespace.slug == caller.namespace,
            slug: namespace.slug,
            kind: match namespace.kind {
                NamespaceKind::System => TemplateNamespaceKind::System,
                NamespaceKind::User => TemplateNamespaceKind::User,
                NamespaceKind::Deployment => TemplateNamespaceKind::Deployment,
            },
        })
    }
}

impl Inner {
    /// The template that a reference is about.
    pub(crate) async fn standing(&self, caller: &Caller, reference: &str) -> Result<Standing> {
        let parsed = parse(reference)?;
        let found = self.db.standing(caller, &parsed).await;
        found.or_missing(|| Error::template_not_found(reference))
    }

    /// The hash of a build's claim token, and the claimed name.
    pub(crate) async fn claim(&self, caller: &Caller, token: &str) -> Result<(ClaimHash, TemplateName)> {
        let hash = ClaimHash::of(token);
        let name = self.db.claimed_name(caller, hash, Timestamp::now()).await;
        Ok((hash, name.or_missing(claim_not_found)?))
    }
}

fn claim_not_found() -> Error {
    let what = "there is no such name claim, or its time is over";
    Error::new(ErrorResponseCode::TemplateNameClaimNotFound, what)
}

/// Tags from a request: at least one, each once, sorted.
pub(crate) fn parse_tags(tags: &[String]) -> Result<Vec<Tag>> {
    if tags.is_empty() {
        return Err(Error::invalid("tags is empty: name at least one"));
    }
    if tags.len() > MAX_TAGS {
        return Err(Error::invalid(format!("tags has more than {MAX_TAGS} entries")));
    }
    let parsed = tags.iter().map(|tag| tag.parse().map_err(|error| Error::invalid(format!("tags: {error}"))));
    let mut parsed = parsed.collect::<Result<Vec<Tag>>>()?;
    parsed.sort();
    parsed.dedup();
    Ok(parsed)
}

/// Parses a name of the caller's own namespace, written with or without the namespace.
pub(crate) fn own_name(field: &str, caller: &Caller, text: &str) -> Result<TemplateName> {
    match text.parse() {
        Ok(TemplateRef::Named { namespace, name, selector: None })
            if namespace.as_ref().is_none_or(|slug| *slug == caller.namespace) =>
        {
            Ok(name)
        }
        Ok(TemplateRef::Named { selector: None, .. }) => Err(Error::invalid(format!(
            "{field} is in another namespace: only names of {} can be given",
            caller.namespace
        ))),
        Ok(_) => Err(Error::invalid(format!("{field} is not a name: leave tag and build out"))),
        Err(error) => Err(Error::invalid(format!("{field} is not valid: {error}"))),
    }
}

/// A template as a whole, with the id of the build that represents it: its default, else its newest.
fn whole(standing: &Standing) -> Result<TemplateInfo> {
    let (build, id) = match (&standing.artifact, standing.newest) {
        (Some(artifact), _) => (artifact.build, artifact.id),
        (None, Some(newest)) => newest,
        (None, None) => {
            let error = DbError::Corrupt { what: "a template without builds".to_owned() };
            return Err(internal("show a template", &error));
        }
    };
    let tags = standing.tags.iter().filter(|target| target.build == build).map(|target| target.tag.to_string());
    let defaults = standing
        .artifact
        .as_ref()
        .map(|artifact| wire::column("artifacts.runtime_defaults", &artifact.runtime_defaults));
    Ok(wire::template_info(&standing.template, id.to_string(), tags.collect(), defaults.transpose().stored()?))
}
