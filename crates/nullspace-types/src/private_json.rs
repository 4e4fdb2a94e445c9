//! JSON that may hold values which belong to one tenant.

use std::fmt;

use serde_json::Value;

/// JSON whose `Debug` says nothing. Build definitions and runtime configurations hold the values of environment
/// variables: they have to be stored to be usable, and must not reach a log line through somebody's `?build`.
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
