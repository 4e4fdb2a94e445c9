//! `fields=`: answers with only the fields that the caller wants.

use axum::http::StatusCode;
use nullspace_api::ErrorResponseCode;
use serde::Serialize;
use serde_json::Value;

use crate::error::Refusal;

/// The fields of a template that can be picked.
pub(crate) const TEMPLATE: &[&str] =
    &["id", "name", "description", "tags", "default_tag", "builtin", "canonical_ref", "namespace_slug", "visibility"];

/// The fields of a sandbox that can be picked: all.
pub(crate) const SANDBOX: &[&str] = &[
    "id",
    "status",
    "config",
    "template",
    "created_at",
    "metadata",
    "started_at",
    "timeout_ms",
    "timeout_at",
    "expires_at",
    "remaining_ms",
    "timeout_action",
    "last_active_at",
    "inactivity_timeout_ms",
    "auto_delete_after_ms",
    "ephemeral",
    "cwd",
    "snapshot_id",
    "traffic_access_token",
    "warm_pool_checkout",
];

/// A choice of fields.
pub(crate) struct Fields(Option<Vec<String>>);

impl Fields {
    /// Read `fields=a,b`; without it everything is chosen.
    pub(crate) fn parse(parameter: Option<&str>, known: &[&str]) -> Result<Self, Refusal> {
        let Some(parameter) = parameter else { return Ok(Self(None)) };
        let names: Vec<String> =
            parameter.split(',').map(str::trim).filter(|name| !name.is_empty()).map(ToOwned::to_owned).collect();
        let invalid = |what: String| {
            let message = format!("{what} `fields` takes some of: {}.", known.join(", "));
            Refusal::new(StatusCode::BAD_REQUEST, ErrorResponseCode::InvalidFields, message)
        };
        match names.iter().find(|name| !known.contains(&name.as_str())) {
            Some(unknown) => Err(invalid(format!("`{unknown}` is not a field that can be picked."))),
            None if names.is_empty() => Err(invalid("`fields` names none.".to_owned())),
            None => Ok(Self(Some(names))),
        }
    }

    /// `value` with only the chosen fields.
    pub(crate) fn pick<T: Serialize>(&self, value: &T) -> Result<Value, Refusal> {
        let mut value = serde_json::to_value(value).map_err(Refusal::internal)?;
        if let (Some(names), Value::Object(object)) = (&self.0, &mut value) {
            object.retain(|name, _| names.contains(name));
        }
        Ok(value)
    }
}
