//! Events, webhooks and deliveries as the API has them.

use nullspace_api::{
    LifecycleAudience, LifecycleEventInfo, LifecycleWebhookDeliveryAttemptInfo, LifecycleWebhookDeliveryInfo,
    LifecycleWebhookInfo, Time,
};
use nullspace_db::{Attempt, Delivery, Event, Webhook};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Result};

/// The word of the API for a value of one of its enums.
pub(super) fn word(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        _ => String::new(),
    }
}

/// The value for a stored word.
fn of_word<T: DeserializeOwned>(word: String) -> Result<T> {
    serde_json::from_value(Value::String(word)).map_err(|error| {
        tracing::error!(%error, "a stored lifecycle event, webhook or delivery has an unknown word");
        Error::new(nullspace_api::ErrorResponseCode::InternalError, "an internal error has occurred")
    })
}

/// An event.
pub(super) fn event(event: Event) -> Result<LifecycleEventInfo> {
    let (error_code, error_message) = event.error.unzip();
    Ok(LifecycleEventInfo {
        id: event.id.to_string(),
        occurred_at: Time::from(event.occurred_at),
        audience: LifecycleAudience::Customer,
        operation: of_word(event.operation)?,
        status: of_word(event.status)?,
        actor_kind: of_word(event.actor)?,
        metadata: match event.metadata {
            Value::Object(metadata) => metadata,
            _ => serde_json::Map::new(),
        },
        sandbox_id: event.sandbox.map(|id| id.to_string()),
        snapshot_id: event.snapshot.map(|id| id.to_string()),
        source_sandbox_id: event.source.map(|id| id.to_string()),
        target_sandbox_id: event.target.map(|id| id.to_string()),
        user_id: Some(event.tenant.uuid().to_string()),
        reason: event.reason,
        error_code,
        error_message,
    })
}

/// A webhook.
pub(super) fn webhook(webhook: Webhook) -> Result<LifecycleWebhookInfo> {
    let (last_delivery_at, last_delivery_status, last_error) = match webhook.last {
        None => (None, None, None),
        Some((at, status, error)) => (Some(Time::from(at)), Some(of_word(status)?), error),
    };
    Ok(LifecycleWebhookInfo {
        id: webhook.id.to_string(),
        url: webhook.url,
        operations: webhook.operations.into_iter().map(of_word).collect::<Result<_>>()?,
        enabled: webhook.enabled,
        has_signing_secret: !webhook.sealed_secret.is_empty(),
        created_at: Time::from(webhook.created_at),
        updated_at: Time::from(webhook.updated_at),
        last_delivery_at,
        last_delivery_status,
        last_error,
    })
}

/// A delivery.
pub(super) fn delivery(delivery: Delivery) -> Result<LifecycleWebhookDeliveryInfo> {
    Ok(LifecycleWebhookDeliveryInfo {
        id: delivery.id.to_string(),
        webhook_id: delivery.webhook.to_string(),
        event_id: delivery.event.to_string(),
        operation: of_word(delivery.operation)?,
        status: of_word(delivery.status)?,
        delivery_status: of_word(delivery.delivery_status)?,
        attempt_count: delivery.attempts,
        created_at: Time::from(delivery.created_at),
        next_attempt_at: delivery.next_attempt_at.map(Time::from),
        last_attempt_at: delivery.last_attempt_at.map(Time::from),
        last_response_status: delivery.last_response_status,
        last_error: delivery.last_error,
    })
}

/// An attempt of a delivery.
pub(super) fn attempt(delivery: &str, attempt: Attempt) -> LifecycleWebhookDeliveryAttemptInfo {
    let (error_code, error_message) = attempt.error.unzip();
    LifecycleWebhookDeliveryAttemptInfo {
        id: attempt.id.to_string(),
        delivery_id: delivery.to_owned(),
        attempt_number: attempt.number,
        attempted_at: Time::from(attempt.at),
        duration_ms: attempt.duration_ms,
        response_status: attempt.response_status,
        error_code,
        error_message,
    }
}
