//! A step in its Dockerfile form.

use nullspace_api::JsonObject;
use serde_json::json;

/// One line of a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The keyword.
    pub instruction: &'static str,
    /// Its arguments.
    pub arguments: String,
}

impl Line {
    /// As `build_steps` shows it.
    pub fn shown(&self) -> JsonObject {
        let mut object = JsonObject::new();
        object.insert("instruction".to_owned(), json!(self.instruction));
        object.insert("arguments".to_owned(), json!(self.arguments));
        object
    }

    /// One `RUN` line.
    pub(super) fn run(arguments: String) -> Vec<Line> {
        vec![Line { instruction: "RUN", arguments }]
    }
}
