//! API keys of the caller's own tenant: made, listed, rotated, revoked.

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use nullspace_api::{ApiKeyInfo, CreateApiKeyRequest, CreateApiKeyResponse, ErrorResponseCode, Secret, Time};
use nullspace_db::{ApiKey, DbError, KeyLimits, KeyScope, KeySpec, NewKey, Rotation};
use nullspace_types::{Caller, KeyId};
use uuid::Uuid;

use crate::Control;
use crate::error::{Error, Result, Stored};

/// Most valid keys of one tenant, and most rows of keys that are over.
const LIMITS: KeyLimits = KeyLimits { active: 100, over: 100 };
/// Longest note, characters.
const NAME: usize = 128;
/// Longest grace of a rotation, seconds: a week.
const MAX_GRACE: u32 = 7 * 24 * 3600;

#[async_trait]
impl nullspace_service::Keys for Control {
    async fn create_key(&self, caller: &Caller, request: CreateApiKeyRequest) -> Result<CreateApiKeyResponse> {
        let now = Timestamp::now();
        if request.grace_secs.is_some() {
            return Err(Error::invalid("grace_secs belongs to a rotation: there is no older key here"));
        }
        let spec = KeySpec { maker: caller.key, ..spec(request, now)? };
        let key = NewKey::generate();
        let made = self.inner.db.create_key(caller.tenant, &key, spec, Some(LIMITS), now).await;
        let made = made.map_err(refused)?;
        tracing::info!(tenant = %caller.tenant, key = %made.id, scope = %made.scope, "a key was created over the API");
        Ok(shown_once(made, &key))
    }

    async fn list_keys(&self, caller: &Caller) -> Result<Vec<ApiKeyInfo>> {
        let now = Timestamp::now();
        let keys = self.inner.db.list_keys(caller.tenant).await.stored()?;
        Ok(keys.into_iter().map(|key| info(key, now)).collect())
    }

    async fn revoke_key(&self, caller: &Caller, id: &str) -> Result<()> {
        let key = parse(id)?;
        let revoked = self.inner.db.revoke_key(Some(caller.tenant), key, Timestamp::now()).await;
        revoked.or_missing(|| missing(id))?;
        self.inner.end_grants_of_ended_keys().await;
        tracing::info!(tenant = %caller.tenant, %key, "a key was revoked over the API");
        Ok(())
    }

    async fn rotate_key(
        &self,
        caller: &Caller,
        id: &str,
        request: CreateApiKeyRequest,
    ) -> Result<CreateApiKeyResponse> {
        let (now, old) = (Timestamp::now(), parse(id)?);
        let grace = request.grace_secs.unwrap_or(0);
        if grace > MAX_GRACE {
            return Err(Error::invalid(format!("grace_secs is {grace}: it must be 0 to {MAX_GRACE}")));
        }
        let rotation = Rotation { key: old, grace: SignedDuration::from_secs(grace.into()) };
        let spec = KeySpec { maker: caller.key, ..spec(request, now)? };
        let key = NewKey::generate();
        let made = self.inner.db.rotate_key(caller.tenant, rotation, &key, spec, LIMITS, now).await;
        let made = made.map_err(|error| match error {
            DbError::NotFound => missing(id),
            error => refused(error),
        })?;
        self.inner.end_grants_of_ended_keys().await;
        tracing::info!(tenant = %caller.tenant, key = %made.id, %old, grace, "a key was rotated over the API");
        Ok(shown_once(made, &key))
    }
}

/// The rules of a request.
fn spec(request: CreateApiKeyRequest, now: Timestamp) -> Result<KeySpec> {
    let name = request.name;
    if name.as_ref().is_some_and(|name| name.chars().count() > NAME || name.chars().any(char::is_control)) {
        return Err(Error::invalid(format!(
            "name must have at most {NAME} characters, none of them a control character"
        )));
    }
    let scope = request.scope.map(|scope| {
        scope.parse::<KeyScope>().map_err(|_| Error::invalid("scope must be full or read: there are no other scopes"))
    });
    let expires_at = request.expires_at.map(Time::timestamp);
    if expires_at.is_some_and(|end| end <= now) {
        return Err(Error::invalid("expires_at is in the past"));
    }
    Ok(KeySpec { label: name, scope: scope.transpose()?, expires_at, maker: None })
}

fn refused(error: DbError) -> Error {
    match error {
        DbError::LimitReached { limit, .. } => {
            let message = format!("there are {limit} valid keys, which is the most; revoke one first");
            Error::new(ErrorResponseCode::QuotaExceeded, message)
        }
        error => crate::error::of_store(error),
    }
}

/// A key's id: the UUID of the API, or `key_…` as the command line shows it.
fn parse(id: &str) -> Result<KeyId> {
    let by_uuid = Uuid::try_parse(id).ok().filter(|uuid| uuid.hyphenated().to_string() == id).map(KeyId::from_uuid);
    by_uuid.or_else(|| id.parse().ok()).ok_or_else(|| missing(id))
}

fn missing(id: &str) -> Error {
    let shown: String = id.chars().filter(|c| c.is_ascii_graphic()).take(64).collect();
    Error::new(ErrorResponseCode::NotFound, format!("there is no key {shown}"))
}

fn wire_id(key: KeyId) -> String {
    key.uuid().hyphenated().to_string()
}

fn name(label: String) -> Option<String> {
    Some(label).filter(|label| !label.is_empty())
}

fn shown_once(made: ApiKey, key: &NewKey) -> CreateApiKeyResponse {
    CreateApiKeyResponse {
        id: wire_id(made.id),
        key: Secret::from(key.expose()),
        prefix: made.shown,
        name: name(made.label),
        scope: Some(made.scope.to_string()),
        expires_at: made.expires_at.map(Time::from),
    }
}

fn info(key: ApiKey, now: Timestamp) -> ApiKeyInfo {
    ApiKeyInfo {
        id: wire_id(key.id),
        is_active: key.is_active(now),
        prefix: key.shown,
        name: name(key.label),
        created_at: Some(key.created_at.into()),
        last_used_at: key.last_used_at.map(Time::from),
        scope: Some(key.scope.to_string()),
        expires_at: key.expires_at.map(Time::from),
        revoked_at: key.revoked_at.map(Time::from),
        rotation_parent_key_id: key.rotated_from.map(wire_id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(1_700_000_000).unwrap()
    }

    #[test]
    fn an_unknown_scope_a_long_name_and_a_past_end_are_refused() {
        let request = CreateApiKeyRequest::default;
        let named = |name: &str| CreateApiKeyRequest { name: Some(name.to_owned()), ..request() };
        let scoped = |scope: &str| CreateApiKeyRequest { scope: Some(scope.to_owned()), ..request() };
        let ending = |second| CreateApiKeyRequest {
            expires_at: Some(Timestamp::from_second(second).unwrap().into()),
            ..request()
        };
        for (request, names) in [
            (named(&"x".repeat(129)), "name"),
            (named("a\nb"), "name"),
            (scoped(""), "scope"),
            (scoped("FULL"), "scope"),
            (scoped("admin"), "scope"),
            (ending(1_700_000_000), "expires_at"),
        ] {
            let error = spec(request.clone(), now()).unwrap_err();
            assert_eq!(error.code, ErrorResponseCode::InvalidRequest, "{request:?}");
            assert!(error.message.starts_with(names), "{error}");
        }
        let spec = spec(CreateApiKeyRequest { scope: Some("read".into()), ..ending(1_700_000_001) }, now()).unwrap();
        assert_eq!(spec.scope, Some(KeyScope::Read));
    }

    #[test]
    fn a_keys_id_is_a_uuid_or_the_command_lines() {
        let key = KeyId::new();
        assert_eq!(parse(&wire_id(key)).unwrap(), key);
        assert_eq!(parse(&key.to_string()).unwrap(), key);
        let hyphenated = wire_id(key);
        let forms =
            [hyphenated.to_uppercase(), format!("{{{hyphenated}}}"), hyphenated.replace('-', ""), String::new()];
        for form in forms {
            assert_eq!(parse(&form).unwrap_err().code, ErrorResponseCode::NotFound, "{form}");
        }
    }
}
