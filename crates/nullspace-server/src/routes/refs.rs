//! Templates by reference. A reference has slashes. The published client sends it as one percent-encoded segment; other
//! clients send it as it is. Both are accepted.
//!
//! ```text
//!   /v1/templates/refs/ns%2Fapp%3Av1/tags/v2 ─┐
//!   /v1/templates/refs/ns/app:v1/tags/v2 ─────┴─> reference `ns/app:v1`, tag `v2`
//!   /v1/templates/refs/ns/tags ───────────────> the template `ns/tags` when there is one, else the tags of `ns`
//! ```
//! A router cannot tell where a reference ends, so there is one route for all, and [`dispatch`] reads the path's tail.

use axum::extract::{FromRequest, FromRequestParts, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use nullspace_service::Caller;
use utoipa::openapi::{OpenApi, PathItem, RefOr};

use super::{names, templates};
use crate::error::Refusal;
use crate::extract::{JsonBody, PathParam, PathParams, QueryParams, wrong_path};
use crate::state::AppState;

/// Where these routes are.
const PREFIX: &str = "/v1/templates/refs/";
/// The single route.
pub(super) const ROUTE: &str = "/v1/templates/refs/{*path}";

/// The prefix of the same operations by id. Handlers, parameters and answers are theirs.
const BY_ID: &str = "/v1/templates/{id}";

/// Operations that the contract describes only by id.
const DESCRIBED_BY_ID: [&str; 2] = ["delete_template", "update_template_visibility"];

/// Adds these routes to the document, derived from those by id: a single route cannot document them.
pub(crate) fn document(document: &mut OpenApi) {
    let mut by_reference = Vec::new();
    for (path, item) in &document.paths.paths {
        let Some(rest) = path.strip_prefix(BY_ID) else { continue };
        let mut item = item.clone();
        let PathItem { get, put, post, delete, patch, .. } = &mut item;
        for operation in [get, put, post, delete, patch].into_iter().flatten() {
            if operation.operation_id.as_deref().is_some_and(|id| DESCRIBED_BY_ID.contains(&id)) {
                operation.description = None;
            }
            operation.operation_id = operation.operation_id.take().map(|id| format!("{id}_by_ref"));
            for parameter in operation.parameters.iter_mut().flatten() {
                if let RefOr::T(parameter) = parameter
                    && parameter.name == "id"
                {
                    parameter.name = "ref".to_owned();
                    parameter.description = Some("A reference, percent-encoded or not".to_owned());
                }
            }
        }
        by_reference.push((format!("{PREFIX}{{ref}}{rest}"), item));
    }
    document.paths.paths.extend(by_reference);
}

/// The part of a template that a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Template,
    Tags,
    Tag(String),
    Aliases,
    Alias(String),
    Builds,
    Rename,
    Visibility,
}

/// One reading of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reading {
    reference: String,
    part: Part,
}

/// Resolves the path and runs the operation.
pub(super) async fn dispatch(state: State<AppState>, request: Request) -> Result<Response, Refusal> {
    let (mut parts, body) = request.into_parts();
    let caller = Caller::from_request_parts(&mut parts, &state).await?;
    let path = parts.uri.path().strip_prefix(PREFIX).unwrap_or_default();
    let readings = readings(path)?;
    let served = |reading: &&Reading| serves(&parts.method, &reading.part);
    let candidates: Vec<&Reading> = readings.iter().filter(served).collect();
    let reading = match candidates.as_slice() {
        [] if readings.is_empty() => return Err(Refusal::no_route()),
        [] => return Ok(method_not_allowed(&parts.method, &readings)),
        [only] => (*only).clone(),
        // A template that is there goes before a part of another one.
        [whole, others @ ..] => {
            let found = state.service.get_template(&caller, &whole.reference).await.map_err(Refusal::from);
            match (found, others.first()) {
                (Err(refusal), Some(other)) if refusal.status == StatusCode::NOT_FOUND => (*other).clone(),
                (Err(refusal), _) if refusal.status != StatusCode::NOT_FOUND => return Err(refusal),
                _ => (*whole).clone(),
            }
        }
    };
    let request = Request::from_parts(parts, body);
    act(state, caller, reading, request).await
}

/// 405 with the allowed methods, as the router answers for its own routes (RFC 9110, 15.5.6).
fn method_not_allowed(method: &Method, readings: &[Reading]) -> Response {
    // The last reading is the narrowest, as the document has it.
    let allowed: Vec<&str> =
        readings.last().into_iter().flat_map(|reading| methods(&reading.part)).map(Method::as_str).collect();
    let mut response = Refusal::method_not_allowed(method).into_response();
    if let Ok(value) = HeaderValue::from_str(&allowed.join(",")) {
        response.headers_mut().insert(header::ALLOW, value);
    }
    response
}

async fn act(state: State<AppState>, caller: Caller, reading: Reading, request: Request) -> Result<Response, Refusal> {
    let Reading { reference, part } = reading;
    let deletes = request.method() == Method::DELETE;
    let posts = request.method() == Method::POST;
    let named = PathParam(reference.clone());
    match part {
        Part::Template if deletes => templates::delete_template(state, caller, named).await,
        Part::Template => {
            let query = query(request, &state).await?;
            templates::get_template(state, caller, named, query).await
        }
        Part::Tags if posts => {
            let body = JsonBody::from_request(request, &state).await?;
            names::assign_template_tags(state, caller, named, body).await
        }
        Part::Tags => names::list_template_tags(state, caller, named).await,
        Part::Tag(tag) => names::remove_template_tag(state, caller, PathParams(reference, tag)).await,
        Part::Aliases => names::list_template_aliases(state, caller, named).await,
        Part::Alias(alias) => names::remove_template_alias(state, caller, PathParams(reference, alias)).await,
        Part::Builds => {
            let query = query(request, &state).await?;
            names::list_template_builds(state, caller, named, query).await
        }
        Part::Rename => {
            let body = JsonBody::from_request(request, &state).await?;
            names::rename_template(state, caller, named, body).await
        }
        Part::Visibility => {
            let body = JsonBody::from_request(request, &state).await?;
            names::update_template_visibility(state, caller, named, body).await
        }
    }
}

async fn query<T: serde::de::DeserializeOwned>(request: Request, state: &AppState) -> Result<QueryParams<T>, Refusal> {
    QueryParams::from_request_parts(&mut request.into_parts().0, state).await
}

fn serves(method: &Method, part: &Part) -> bool {
    methods(part).contains(method)
}

/// The operations on a part.
fn methods(part: &Part) -> &'static [Method] {
    match part {
        Part::Template => &[Method::GET, Method::HEAD, Method::DELETE],
        Part::Tags => &[Method::GET, Method::HEAD, Method::POST],
        Part::Aliases | Part::Builds => &[Method::GET, Method::HEAD],
        Part::Tag(_) | Part::Alias(_) => &[Method::DELETE],
        Part::Rename => &[Method::POST],
        Part::Visibility => &[Method::PATCH],
    }
}

/// Every reading of a path, the whole as a reference first. A reference has at most one slash.
fn readings(path: &str) -> Result<Vec<Reading>, Refusal> {
    let segments: Vec<String> = path.split('/').map(decode).collect::<Result<_, _>>()?;
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    let mut found = Vec::new();
    let mut read = |reference: &[&str], part: Part| {
        let reference = reference.join("/");
        let slashes = reference.matches('/').count();
        if !reference.split('/').any(str::is_empty) && slashes <= 1 {
            found.push(Reading { reference, part });
        }
    };
    read(&words, Part::Template);
    if let [reference @ .., last] = words.as_slice() {
        match *last {
            "tags" => read(reference, Part::Tags),
            "aliases" => read(reference, Part::Aliases),
            "builds" => read(reference, Part::Builds),
            "rename" => read(reference, Part::Rename),
            "visibility" => read(reference, Part::Visibility),
            _ => {}
        }
    }
    if let [reference @ .., "tags", tag] = words.as_slice() {
        read(reference, Part::Tag((*tag).to_owned()));
    }
    if let [reference @ .., "aliases", alias] = words.as_slice() {
        read(reference, Part::Alias((*alias).to_owned()));
    }
    if let [reference @ .., "aliases", namespace, alias] = words.as_slice() {
        read(reference, Part::Alias(format!("{namespace}/{alias}")));
    }
    Ok(found)
}

/// A segment without its percent-encoding.
fn decode(segment: &str) -> Result<String, Refusal> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        let (Some(high), Some(low)) = (digit(rest.next()), digit(rest.next())) else { return Err(wrong_path()) };
        bytes.push(u8::try_from(high * 16 + low).map_err(|_| wrong_path())?);
    }
    String::from_utf8(bytes).map_err(|_| wrong_path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_a_reference_mean_the_same() {
        for (path, expected) in [
            ("app", vec![("app", Part::Template)]),
            ("ns%2Fapp%3Av1", vec![("ns/app:v1", Part::Template)]),
            ("ns/app:v1", vec![("ns/app:v1", Part::Template)]),
            ("ns%2Fapp/tags", vec![("ns/app", Part::Tags)]),
            ("ns/app/tags", vec![("ns/app", Part::Tags)]),
            ("ns/app/tags/v1", vec![("ns/app", Part::Tag("v1".into()))]),
            ("ns/tags", vec![("ns/tags", Part::Template), ("ns", Part::Tags)]),
            ("a/aliases/b", vec![("a", Part::Alias("b".into()))]),
            ("ns/a/aliases/ns/b", vec![("ns/a", Part::Alias("ns/b".into()))]),
            ("ns%2fa/aliases/ns%2fb", vec![("ns/a", Part::Alias("ns/b".into()))]),
            ("a/b/c", vec![]),
            ("a//tags", vec![]),
            ("tags", vec![("tags", Part::Template)]),
            ("", vec![]),
        ] {
            let found: Vec<(String, Part)> =
                readings(path).unwrap().into_iter().map(|reading| (reading.reference, reading.part)).collect();
            let expected: Vec<(String, Part)> =
                expected.into_iter().map(|(reference, part)| (reference.to_owned(), part)).collect();
            assert_eq!(found, expected, "{path}");
        }
        assert!(readings("%").is_err() && readings("%zz").is_err() && readings("%ff").is_err());
    }
}
