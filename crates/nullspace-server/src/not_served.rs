//! Operations of the contract that are not implemented. They answer 501; unknown paths answer 404.
//!
//! The list is a data file beside the contract, so that it can be seen to shrink; a test holds it to the truth.

use axum::http::{Method, StatusCode};
use nullspace_api::ErrorResponseCode;

use crate::error::Refusal;

const LIST: &str = include_str!("../../../contract/not-served.txt");

/// Why there is no handler for a request.
pub(crate) fn refusal(method: &Method, path: &str) -> Refusal {
    let segments: Vec<&str> = path.split('/').collect();
    let mut known_path = false;
    for line in LIST.lines() {
        let mut words = line.split_whitespace();
        let (Some(verb), Some(pattern), Some(operation)) = (words.next(), words.next(), words.next()) else { continue };
        let pattern: Vec<&str> = pattern.split('/').collect();
        if matches(&pattern, &segments) {
            known_path = true;
            if verb == method.as_str() {
                let message = format!("This deployment does not offer `{operation}`.");
                return Refusal::new(StatusCode::NOT_IMPLEMENTED, ErrorResponseCode::NotImplemented, message);
            }
        }
    }
    if known_path {
        method_not_allowed(method)
    } else {
        Refusal::new(StatusCode::NOT_FOUND, ErrorResponseCode::NotFound, "There is no such route.")
    }
}

/// The path exists, but not with this method.
pub(crate) fn method_not_allowed(method: &Method) -> Refusal {
    let message = format!("The route exists, but not with {method}.");
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, ErrorResponseCode::InvalidRequest, message)
}

/// True when a path fits a pattern. `{ref}` is one or more segments: references hold slashes, and not every client
/// encodes them.
fn matches(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern.split_first(), path.split_first()) {
        (None, None) => true,
        (Some((&"{ref}", rest)), Some((first, others))) => {
            !first.is_empty() && (matches(rest, others) || (!others.is_empty() && matches(pattern, others)))
        }
        (Some((expected, rest)), Some((actual, others))) => {
            let fits = if expected.starts_with('{') { !actual.is_empty() } else { expected == actual };
            fits && matches(rest, others)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_may_span_segments() {
        let fits = |pattern: &str, path: &str| {
            matches(&pattern.split('/').collect::<Vec<_>>(), &path.split('/').collect::<Vec<_>>())
        };
        assert!(fits("/refs/{ref}/tags/{tag}", "/refs/app/tags/v1"));
        assert!(fits("/refs/{ref}/tags/{tag}", "/refs/ns/app/tags/v1"));
        assert!(fits("/refs/{ref}", "/refs/ns/app:tag"));
        assert!(!fits("/refs/{ref}", "/refs/"));
        assert!(!fits("/refs/{ref}/tags", "/refs/tags"));
        assert!(fits("/a/{id}", "/a/b"));
        assert!(!fits("/a/{id}", "/a/b/c"));
        assert!(!fits("/a/{id}", "/a/"));
    }
}
