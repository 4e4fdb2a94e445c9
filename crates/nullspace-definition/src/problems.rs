//! Problems of a request, and the limits of texts and paths in it.
//!
//! All rules are checked, not only up to the first broken one, so that one answer names everything to correct.

use std::collections::BTreeMap;

use nullspace_api::{Envs, TemplateFailurePhase};

/// Most bytes of a path on Linux.
pub const MAX_PATH: usize = 4095;
/// Most bytes of one name in a path on Linux.
const MAX_NAME: usize = 255;
/// Most variables in one map.
const MAX_ENVS: usize = 1_000;
/// Most bytes of one variable's value, or of a start, resume or readiness command: the limit of `execve` for one argument.
pub const MAX_TEXT: usize = 128 * 1024 - 1;

/// One problem of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `invalid_<field>`, or the contract's own code.
    pub code: String,
    /// The text, which begins with the field.
    pub message: String,
    /// The phase in which a build would have failed.
    pub phase: TemplateFailurePhase,
}

/// A refused request. `Display` is one sentence with all of its problems.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", messages(.0))]
pub struct Invalid(pub Vec<Problem>);

/// Collects problems of a request, field by field.
#[derive(Debug, Default)]
pub struct Wrong(Vec<Problem>);

impl Wrong {
    /// Adds a problem: `what` follows the field's name.
    pub fn say(&mut self, field: &str, what: impl std::fmt::Display) {
        let top = field.split(['.', '[']).next().unwrap_or(field);
        self.0.push(Problem {
            code: format!("invalid_{top}"),
            message: format!("{field} {what}"),
            phase: TemplateFailurePhase::Preflight,
        });
    }

    /// Parses a field's text. An invalid text gives `None` and a problem.
    pub(crate) fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(&mut self, field: &str, text: &str) -> Option<T> {
        text.parse().map_err(|error| self.say(field, format_args!("is not valid: {error}"))).ok()
    }

    /// Checks that a number is in its range, both ends included.
    pub(crate) fn range<T: PartialOrd + std::fmt::Display>(&mut self, field: &str, value: T, low: T, high: T) {
        if value < low || value > high {
            self.say(field, format_args!("is {value}: it must be {low} to {high}"));
        }
    }

    /// Checks text that becomes an argument or a variable of a process.
    pub(crate) fn text(&mut self, field: &str, text: &str) {
        if text.contains('\0') {
            self.say(field, "contains a NUL character");
        }
        if text.len() > MAX_TEXT {
            self.say(field, format_args!("is longer than {MAX_TEXT} bytes"));
        }
    }

    /// Checks the lengths of a path and of its names against Linux' limits.
    pub(crate) fn lengths(&mut self, field: &str, path: &str) {
        if path.len() > MAX_PATH {
            self.say(field, format_args!("is longer than {MAX_PATH} bytes"));
        }
        if let Some(name) = path.split('/').find(|name| name.len() > MAX_NAME) {
            let begin: String = name.chars().take(20).collect();
            let what =
                format!("has a name of {} bytes ('{}…'): {MAX_NAME} are the most", name.len(), begin.escape_debug());
            self.say(field, what);
        }
    }

    /// Checks an absolute path in a guest.
    pub(crate) fn absolute(&mut self, field: &str, path: &str) {
        self.text(field, path);
        if !path.starts_with('/') {
            self.say(field, "is not an absolute path");
        }
        if path.split('/').any(|part| part == "..") {
            self.say(field, "contains '..'");
        }
        self.lengths(field, path);
    }

    /// Checks variables, and returns them.
    pub(crate) fn envs(&mut self, field: &str, envs: Option<&Envs>) -> BTreeMap<String, String> {
        let Some(envs) = envs else { return BTreeMap::new() };
        if envs.len() > MAX_ENVS {
            self.say(field, format_args!("has more than {MAX_ENVS} variables"));
        }
        for (key, value) in envs {
            if key.is_empty() || key.contains(['=', '\0']) || key.len() > 256 {
                self.say(field, "has a key that is empty, longer than 256 bytes, or contains '=' or NUL");
            }
            self.text(&format!("{field}.{key}"), value);
        }
        envs.0.clone()
    }

    /// Takes over the problems of another collector. Returns their number.
    pub(crate) fn take(&mut self, other: Wrong) -> usize {
        let count = other.0.len();
        self.0.extend(other.0);
        count
    }

    /// All problems, in the order in which they were found.
    pub fn into_problems(self) -> Vec<Problem> {
        self.0
    }

    #[cfg(test)]
    pub(crate) fn into_message(self) -> String {
        messages(&self.0)
    }

    /// Ends the checks.
    ///
    /// # Errors
    /// [`Invalid`] with all problems, when there is one.
    pub fn result(self) -> Result<(), Invalid> {
        if self.0.is_empty() { Ok(()) } else { Err(Invalid(self.0)) }
    }
}

/// All problems as one sentence.
pub fn messages(problems: &[Problem]) -> String {
    problems.iter().map(|problem| problem.message.as_str()).collect::<Vec<_>>().join("; ")
}
