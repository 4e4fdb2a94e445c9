//! The fake service's webhooks: it keeps them, and each has one delivery.

use async_trait::async_trait;
use nullspace_api::*;
use nullspace_service::{Caller, Error, EventQuery, Events, Result, Webhooks};

use super::{Fake, letter};

pub(crate) const DELIVERY: &str = "00000000-0000-7000-8000-00000000d001";

fn missing(id: &str) -> Error {
    Error::new(ErrorResponseCode::NotFound, format!("There is no webhook `{id}`."))
}

fn delivery(webhook: &LifecycleWebhookInfo) -> LifecycleWebhookDeliveryInfo {
    LifecycleWebhookDeliveryInfo {
        id: DELIVERY.into(),
        webhook_id: webhook.id.clone(),
        event_id: "00000000-0000-7000-8000-000000000000".into(),
        operation: LifecycleOperation::Hibernate,
        status: LifecycleStatus::Succeeded,
        delivery_status: LifecycleWebhookDeliveryStatus::Queued,
        attempt_count: 1,
        created_at: webhook.created_at,
        next_attempt_at: Some(webhook.created_at),
        last_attempt_at: None,
        last_response_status: Some(500),
        last_error: None,
    }
}

#[async_trait]
impl Webhooks for Fake {
    async fn create_webhook(
        &self,
        caller: &Caller,
        request: CreateLifecycleWebhookRequest,
    ) -> Result<LifecycleWebhookInfo> {
        self.call(format!("create_webhook {} {request:?}", letter(caller)));
        if request.operations.is_empty() {
            return Err(Error::invalid("`operations` must not be empty."));
        }
        let mut webhooks = self.webhooks.lock().unwrap();
        let at = "2025-01-31T10:00:00Z".parse().unwrap();
        let webhook = LifecycleWebhookInfo {
            id: format!("00000000-0000-7000-8000-00000000e{:03}", webhooks.len()),
            url: request.url,
            operations: request.operations,
            enabled: request.enabled.unwrap_or(true),
            has_signing_secret: !request.signing_secret.expose().is_empty(),
            created_at: at,
            updated_at: at,
            last_delivery_at: None,
            last_delivery_status: None,
            last_error: None,
        };
        webhooks.push(webhook.clone());
        Ok(webhook)
    }

    async fn list_webhooks(&self, caller: &Caller) -> Result<Vec<LifecycleWebhookInfo>> {
        Ok(if letter(caller) == "a" { self.webhooks.lock().unwrap().clone() } else { Vec::new() })
    }

    async fn get_webhook(&self, caller: &Caller, id: &str) -> Result<LifecycleWebhookInfo> {
        let all = self.list_webhooks(caller).await?;
        all.into_iter().find(|webhook| webhook.id == id).ok_or_else(|| missing(id))
    }

    async fn update_webhook(
        &self,
        caller: &Caller,
        id: &str,
        request: UpdateLifecycleWebhookRequest,
    ) -> Result<LifecycleWebhookInfo> {
        self.call(format!("update_webhook {request:?}"));
        self.get_webhook(caller, id).await?;
        let mut webhooks = self.webhooks.lock().unwrap();
        let webhook = webhooks.iter_mut().find(|webhook| webhook.id == id).ok_or_else(|| missing(id))?;
        let UpdateLifecycleWebhookRequest { url, operations, signing_secret: _, enabled } = request;
        webhook.url = url.unwrap_or_else(|| webhook.url.clone());
        webhook.operations = operations.unwrap_or_else(|| webhook.operations.clone());
        webhook.enabled = enabled.unwrap_or(webhook.enabled);
        Ok(webhook.clone())
    }

    async fn delete_webhook(&self, caller: &Caller, id: &str) -> Result<()> {
        self.get_webhook(caller, id).await?;
        self.webhooks.lock().unwrap().retain(|webhook| webhook.id != id);
        Ok(())
    }

    async fn list_deliveries(
        &self,
        caller: &Caller,
        id: &str,
        offset: u64,
        limit: u32,
    ) -> Result<Vec<LifecycleWebhookDeliveryInfo>> {
        let webhook = self.get_webhook(caller, id).await?;
        self.call(format!("list_deliveries offset {offset} limit {limit}"));
        Ok(if offset == 0 { vec![delivery(&webhook)] } else { Vec::new() })
    }

    async fn get_delivery(&self, caller: &Caller, id: &str, wanted: &str) -> Result<LifecycleWebhookDeliveryDetail> {
        let webhook = self.get_webhook(caller, id).await?;
        if wanted != DELIVERY {
            return Err(Error::new(ErrorResponseCode::NotFound, format!("There is no delivery `{wanted}`.")));
        }
        let oldest = EventQuery { order: LifecycleOrder::Asc, limit: Some(1), ..EventQuery::default() };
        let event = self.list_events(caller, oldest).await?.events.pop().ok_or_else(|| missing(id))?;
        let attempt = LifecycleWebhookDeliveryAttemptInfo {
            id: "00000000-0000-7000-8000-00000000a001".into(),
            delivery_id: DELIVERY.into(),
            attempt_number: 1,
            attempted_at: webhook.created_at,
            duration_ms: 12,
            response_status: Some(500),
            error_code: None,
            error_message: None,
        };
        Ok(LifecycleWebhookDeliveryDetail { delivery: delivery(&webhook), event, attempts: vec![attempt] })
    }
}
