//! JSON with values of one tenant.

use std::fmt;

use serde_json::Value;

/// JSON with an empty `Debug`. Build definitions and runtime settings have the values of environment variables. These must be
/// stored, but must not reach a log line through `?build`.
#[derive(Clone, PartialEq, Default)]
pub struct PrivateJson(pub Value);

impl fmt::Debug for PrivateJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateJson(…)")
    }
}

impl From<Value> for PrivateJson {
    fn from(value: Value) -> Self {
        Self(value)
    }
}
