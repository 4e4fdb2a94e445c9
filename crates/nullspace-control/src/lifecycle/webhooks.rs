//! Webhooks of a tenant: the rules of a request, and their deliveries for their owner.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_api::{
    CreateLifecycleWebhookRequest, ErrorResponseCode, LifecycleOperation, LifecycleWebhookDeliveryDetail,
    LifecycleWebhookDeliveryInfo, LifecycleWebhookInfo, Secret, UpdateLifecycleWebhookRequest,
};
use nullspace_db::{DbError, Webhook, WebhookChange};
use nullspace_types::Caller;
use reqwest::Url;
use uuid::Uuid;

use super::send::WebhookSender;
use super::wire::{self, word};
use crate::error::{Error, Result, Stored};
use crate::sealed::SealKey;
use crate::{Control, Inner};

/// Most webhooks of one tenant.
const MOST: u32 = 20;
/// Longest URL, in bytes, and longest secret, in characters.
const URL: usize = 2048;
const SECRET: usize = 256;
/// Most deliveries of a page.
const PAGE: u32 = 1000;

#[async_trait]
impl nullspace_service::Webhooks for Control {
    async fn create_webhook(
        &self,
        caller: &Caller,
        request: CreateLifecycleWebhookRequest,
    ) -> Result<LifecycleWebhookInfo> {
        let Inner { config, db, .. } = &*self.inner;
        let (id, now) = (Uuid::now_v7(), Timestamp::now());
        let webhook = Webhook {
            id,
            tenant: caller.tenant,
            url: url(request.url, &config.webhooks)?,
            operations: operations(request.operations)?,
            sealed_secret: sealed(&config.seal, id, &request.signing_secret)?,
            enabled: request.enabled.unwrap_or(true),
            created_at: now,
            updated_at: now,
            last: None,
        };
        let made = match db.insert_webhook(webhook, MOST).await {
            Err(DbError::Conflict { .. } | DbError::LimitReached { .. }) => {
                let message = format!("there are {MOST} webhooks, which is the most; delete one first");
                return Err(Error::new(ErrorResponseCode::QuotaExceeded, message));
            }
            made => made.stored()?,
        };
        wire::webhook(made)
    }

    async fn list_webhooks(&self, caller: &Caller) -> Result<Vec<LifecycleWebhookInfo>> {
        let webhooks = self.inner.db.list_webhooks(caller).await.stored()?;
        webhooks.into_iter().map(wire::webhook).collect()
    }

    async fn get_webhook(&self, caller: &Caller, id: &str) -> Result<LifecycleWebhookInfo> {
        let found = self.inner.db.get_webhook(caller, parse(id, "webhook")?).await;
        wire::webhook(found.or_missing(|| missing(id, "webhook"))?)
    }

    async fn update_webhook(
        &self,
        caller: &Caller,
        id: &str,
        request: UpdateLifecycleWebhookRequest,
    ) -> Result<LifecycleWebhookInfo> {
        let Inner { config, db, .. } = &*self.inner;
        let webhook = parse(id, "webhook")?;
        let change = WebhookChange {
            url: request.url.map(|text| url(text, &config.webhooks)).transpose()?,
            operations: request.operations.map(operations).transpose()?,
            sealed_secret: request.signing_secret.map(|secret| sealed(&config.seal, webhook, &secret)).transpose()?,
            enabled: request.enabled,
        };
        let changed = db.update_webhook(caller, webhook, change, Timestamp::now()).await;
        wire::webhook(changed.or_missing(|| missing(id, "webhook"))?)
    }

    async fn delete_webhook(&self, caller: &Caller, id: &str) -> Result<()> {
        let deleted = self.inner.db.delete_webhook(caller, parse(id, "webhook")?).await;
        deleted.or_missing(|| missing(id, "webhook"))
    }

    async fn list_deliveries(
        &self,
        caller: &Caller,
        id: &str,
        offset: u64,
        limit: u32,
    ) -> Result<Vec<LifecycleWebhookDeliveryInfo>> {
        let webhook = parse(id, "webhook")?;
        let found = self.inner.db.list_deliveries(caller, webhook, offset, limit.clamp(1, PAGE)).await;
        found.or_missing(|| missing(id, "webhook"))?.into_iter().map(wire::delivery).collect()
    }

    async fn get_delivery(&self, caller: &Caller, id: &str, delivery: &str) -> Result<LifecycleWebhookDeliveryDetail> {
        let (webhook, parsed) = (parse(id, "webhook")?, parse(delivery, "delivery")?);
        let found = self.inner.db.get_delivery(caller, webhook, parsed).await;
        let (found, event, attempts) = found.or_missing(|| missing(delivery, "delivery"))?;
        let found = wire::delivery(found)?;
        let attempts = attempts.into_iter().map(|attempt| wire::attempt(&found.id, attempt)).collect();
        Ok(LifecycleWebhookDeliveryDetail { delivery: found, event: wire::event(event)?, attempts })
    }
}

fn missing(id: &str, what: &str) -> Error {
    Error::new(ErrorResponseCode::NotFound, format!("there is no {what} {id}"))
}

fn parse(id: &str, what: &str) -> Result<Uuid> {
    Uuid::try_parse(id).map_err(|_| missing(id, what))
}

/// Checks a URL. A name is judged when it is dialled.
fn url(text: String, sender: &WebhookSender) -> Result<String> {
    let wrong = |what: &str| Error::invalid(format!("url {what}"));
    if text.len() > URL {
        return Err(wrong("is longer than 2048 bytes"));
    }
    if text.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err(wrong("has white space or control characters in it"));
    }
    let url = Url::parse(&text).map_err(|error| wrong(&format!("is not a URL: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong("must begin with https:// or http://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("has credentials in it; deliveries are signed with signing_secret instead"));
    }
    sender.judge(&url).map_err(|refused| wrong(&refused.to_string()))?;
    Ok(text)
}

/// Checks operations, and puts them in order.
fn operations(mut operations: Vec<LifecycleOperation>) -> Result<Vec<String>> {
    if operations.is_empty() {
        return Err(Error::invalid("operations must name at least one operation"));
    }
    operations.sort_unstable();
    operations.dedup();
    Ok(operations.into_iter().map(word).collect())
}

fn sealed(seal: &SealKey, webhook: Uuid, secret: &Secret) -> Result<Vec<u8>> {
    let secret = secret.expose();
    if secret.is_empty() || secret.chars().count() > SECRET {
        return Err(Error::invalid("signing_secret must have 1 to 256 characters"));
    }
    seal.seal(&webhook.to_string(), secret.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::send::tests::sender;
    use super::*;

    #[test]
    fn urls_are_http_without_credentials_and_lead_outside() {
        let sender = sender(&["127.0.0.1:8000"], Duration::from_secs(1));
        let check = |text: &str| url(text.to_owned(), &sender);
        let long = |length: usize| format!("https://example.com/{}", "a".repeat(length - 20));
        for good in ["https://example.com/x?y=1", "http://example.com", "http://127.0.0.1:8000/", &long(URL)] {
            assert_eq!(check(good).unwrap(), good);
        }
        for (bad, told) in [
            ("", "not a URL"),
            ("example.com/x", "not a URL"),
            ("https://", "not a URL"),
            ("ftp://example.com/", "must begin with"),
            ("file:///etc/passwd", "must begin with"),
            ("https://user@example.com/", "credentials"),
            ("https://:password@example.com/", "credentials"),
            ("https://exa\tmple.com/", "white space"),
            ("https://example.com/a b", "white space"),
            ("http://127.0.0.1/", "no public address"),
            ("http://169.254.169.254/latest/meta-data", "no public address"),
            ("http://[fd00::1]/", "no public address"),
            ("http://localhost:8001/", "no public address"),
            (&long(URL + 1), "longer than 2048"),
        ] {
            let error = check(bad).unwrap_err();
            assert!(error.message.contains(told), "{bad}: {error}");
            assert_eq!(error.code, ErrorResponseCode::InvalidRequest);
        }
    }

    #[test]
    fn operations_and_secrets_have_their_rules() {
        use LifecycleOperation::{Create, Fork};
        assert_eq!(operations(vec![Fork, Create, Fork]).unwrap(), ["create", "fork"]);
        assert!(operations(Vec::new()).is_err());
        let seal = SealKey::parse(&SealKey::generate().unwrap()).unwrap();
        let id = Uuid::now_v7();
        let secret = |text: String| sealed(&seal, id, &Secret::new(text));
        let opened = |sealed: Vec<u8>| seal.open(&id.to_string(), &sealed).unwrap();
        assert_eq!(opened(secret("é".repeat(SECRET)).unwrap()), "é".repeat(SECRET).as_bytes());
        for bad in [String::new(), "a".repeat(SECRET + 1)] {
            let error = secret(bad.clone()).unwrap_err();
            assert!(bad.is_empty() || !error.message.contains(&bad));
        }
    }
}
