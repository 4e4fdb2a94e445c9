//! Templates by reference. A reference holds slashes: the published client sends it as one percent-encoded segment, others
//! send it as it is, and both are taken.
//!
//! ```text
//!   /v1/templates/refs/ns%2Fapp%3Av1/tags/v2 ─┐
//!   /v1/templates/refs/ns/app:v1/tags/v2 ─────┴─> reference `ns/app:v1`, tag `v2`
//!   /v1/templates/refs/ns/tags ───────────────> the template `ns/tags` when there is one, else the tags of `ns`
//! ```
//! A router cannot tell where a reference ends, so there is one route for all, and [`dispatch`] reads the path's tail.

use axum::extract::{FromRequest, FromRequestParts, Request, State};
use axum::http::{HeaderValue, Method, header};
use axum::response::{IntoResponse, Response};
use nullspace_api::{
    AssignTagsRequest, ErrorResponse, RenameTemplateRequest, TemplateAliasInfo, TemplateBuildListResponse,
    TemplateInfo, TemplateTagInfo, UpdateTemplateVisibilityRequest,
};
use utoipa::OpenApi;

use super::names::BuildsQuery;
use super::templates::FieldsQuery;
use super::{AppState, names, templates};
use crate::extract::{JsonBody, PathParam, PathParams, QueryParams, wrong_path};
use crate::not_served;
use crate::service::{Caller, ErrorKind, ServiceError};

/// Where these routes are.
const PREFIX: &str = "/v1/templates/refs/";
/// The one route.
pub(super) const ROUTE: &str = "/v1/templates/refs/{*path}";

/// Their part of the OpenAPI document, which the one route cannot give.
#[derive(OpenApi)]
#[openapi(paths(
    get_template_by_ref,
    delete_template_by_ref,
    list_template_tags_by_ref,
    assign_template_tags_by_ref,
    remove_template_tag_by_ref,
    list_template_aliases_by_ref,
    remove_template_alias_by_ref,
    list_template_builds_by_ref,
    rename_template_by_ref,
    update_template_visibility_by_ref,
))]
pub(crate) struct Documented;

/// What of a template a path names.
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

/// Finds out what is meant, and does it.
pub(super) async fn dispatch(state: State<AppState>, request: Request) -> Result<Response, ServiceError> {
    let (mut parts, body) = request.into_parts();
    let caller = Caller::from_request_parts(&mut parts, &state).await?;
    let path = parts.uri.path().strip_prefix(PREFIX).unwrap_or_default();
    let readings = readings(path)?;
    let served = |reading: &&Reading| serves(&parts.method, &reading.part);
    let candidates: Vec<&Reading> = readings.iter().filter(served).collect();
    let reading = match candidates.as_slice() {
        [] if readings.is_empty() => return Err(not_served::refusal(&parts.method, parts.uri.path())),
        [] => return Ok(method_not_allowed(&parts.method, &readings)),
        [only] => (*only).clone(),
        // A template that is there goes before a part of another one.
        [whole, others @ ..] => match state.service.get_template(&caller, &whole.reference).await {
            Ok(_) => (*whole).clone(),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                others.first().map_or_else(|| (*whole).clone(), |other| (*other).clone())
            }
            Err(error) => return Err(error),
        },
    };
    let request = Request::from_parts(parts, body);
    act(state, caller, reading, request).await
}

/// 405 with the methods that there are, as the router answers for its own routes (RFC 9110, 15.5.6).
fn method_not_allowed(method: &Method, readings: &[Reading]) -> Response {
    // The last reading is the narrowest, as the document has it.
    let allowed: Vec<&str> =
        readings.last().into_iter().flat_map(|reading| methods(&reading.part)).map(Method::as_str).collect();
    let mut response = not_served::method_not_allowed(method).into_response();
    if let Ok(value) = HeaderValue::from_str(&allowed.join(",")) {
        response.headers_mut().insert(header::ALLOW, value);
    }
    response
}

async fn act(
    state: State<AppState>,
    caller: Caller,
    reading: Reading,
    request: Request,
) -> Result<Response, ServiceError> {
    let Reading { reference, part } = reading;
    let deletes = request.method() == Method::DELETE;
    let posts = request.method() == Method::POST;
    let named = PathParam(reference.clone());
    match part {
        Part::Template if deletes => delete_template_by_ref(state, caller, named).await,
        Part::Template => {
            let query = query(request, &state).await?;
            get_template_by_ref(state, caller, named, query).await
        }
        Part::Tags if posts => {
            let body = JsonBody::from_request(request, &state).await?;
            assign_template_tags_by_ref(state, caller, named, body).await
        }
        Part::Tags => list_template_tags_by_ref(state, caller, named).await,
        Part::Tag(tag) => remove_template_tag_by_ref(state, caller, PathParams(reference, tag)).await,
        Part::Aliases => list_template_aliases_by_ref(state, caller, named).await,
        Part::Alias(alias) => remove_template_alias_by_ref(state, caller, PathParams(reference, alias)).await,
        Part::Builds => {
            let query = query(request, &state).await?;
            list_template_builds_by_ref(state, caller, named, query).await
        }
        Part::Rename => {
            let body = JsonBody::from_request(request, &state).await?;
            rename_template_by_ref(state, caller, named, body).await
        }
        Part::Visibility => {
            let body = JsonBody::from_request(request, &state).await?;
            update_template_visibility_by_ref(state, caller, named, body).await
        }
    }
}

async fn query<T: serde::de::DeserializeOwned>(
    request: Request,
    state: &AppState,
) -> Result<QueryParams<T>, ServiceError> {
    QueryParams::from_request_parts(&mut request.into_parts().0, state).await
}

fn serves(method: &Method, part: &Part) -> bool {
    methods(part).contains(method)
}

/// Which operations there are.
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
fn readings(path: &str) -> Result<Vec<Reading>, ServiceError> {
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
fn decode(segment: &str) -> Result<String, ServiceError> {
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

/// List a template's tags
#[utoipa::path(
    get,
    path = "/v1/templates/refs/{ref}/tags",
    operation_id = "list_template_tags_by_ref",
    tag = "templates",
    params(("ref" = String, Path, description = "A reference, percent-encoded or not")),
    responses(
        (status = 200, description = "Its tags, by name.", body = Vec<TemplateTagInfo>),
        (status = 404, description = "There is no such template.", body = ErrorResponse),
        (status = 501, description = "This deployment has no template store.", body = ErrorResponse),
    ),
)]
async fn list_template_tags_by_ref(
    state: State<AppState>,
    caller: Caller,
    reference: PathParam,
) -> Result<Response, ServiceError> {
    names::list_template_tags(state, caller, reference).await
}

/// Set tags
///
/// Makes tags point to what the reference means.
#[utoipa::path(
    post,
    path = "/v1/templates/refs/{ref}/tags",
    operation_id = "assign_template_tags_by_ref",
    tag = "templates",
    params(("ref" = String, Path, description = "A reference, percent-encoded or not")),
    request_body = AssignTagsRequest,
    responses(
        (status = 200, description = "The template.", body = TemplateInfo),
        (status = 404, description = "There is no such template.", body = ErrorResponse),
        (status = 501, description = "This deployment has no template store.", body = ErrorResponse),
    ),
)]
async fn assign_template_tags_by_ref(
    state: State<AppState>,
    caller: Caller,
    reference: PathParam,
    request: JsonBody<AssignTagsRequest>,
) -> Result<Response, ServiceError> {
    names::assign_template_tags(state, caller, reference, request).await
}

/// Remove a tag
#[utoipa::path(
    delete,
    path = "/v1/templates/refs/{ref}/tags/{tag}",
    operation_id = "remove_template_tag_by_ref",
    tag = "templates",
    params(("ref" = String, Path, description = "A reference, percent-encoded or not"), ("tag" = String, Path, description = "The tag")),
    responses(
        (status = 204, description = "It is removed."),
        (status = 404, description = "There is no such template or tag.", body = ErrorResponse),
        (status = 501, description = "This deployment has no template store.", body = ErrorResponse),
    ),
)]
async fn remove_template_tag_by_ref(
    state: State<AppState>,
    caller: Caller,
    names: PathParams,
) -> Result<Response, ServiceError> {
    names::remove_template_tag(state, caller, names).await
}

/// List a template's older names
#[utoipa::path(
    get,
    path = "/v1/templates/refs/{ref}/aliases",
    operation_id = "list_template_aliases_by_ref",
    tag = "templates",
    params(("ref" = String, Path, description = "A reference, percent-encoded or not")),
    responses(
        (status = 200, description = "Its older names.", body = Vec<TemplateAliasInfo>),
        (status = 404, description = "There is no such template.", body = ErrorResponse),
        (status = 501, description = "This deployment has no template store.", body = ErrorResponse),
    ),
)]
async fn list_template_aliases_by_ref(
    state: State<AppState>,
    caller: Caller,
    reference: PathParam,
) -> Result<Response, ServiceError> {
    names::list_template_aliases(state, caller, reference).await
}

/// Remove an older name
#[utoipa::path(
    delete,
    path = "/v1/templates/refs/{ref}/aliases/{alias}",
    operation_id = "remove_template_alias_by_ref",
    tag = "templates",
    params(("ref" = String, Path, description = "A reference, percent-encoded or not"), ("alias" = String, Path, description = "`name` or `namespace/name`")),
    responses(
        (status = 204, description = "It is removed, and the name is free."),
        (status = 404, description = "There is no such template or alias.", body = ErrorResponse),
        (status = 501, description = "This deployment has no template store.", body = ErrorResponse),
    ),
)]
async fn remove_template_alias_by_ref(
    state: State<AppState>,
    caller: Caller,
    names: PathParams,
) -> Result<Response, ServiceError> {
    names::remove_template_alias(state, caller, names).await
}

/// List a template's builds
///
/// Newest first; failed ones and those whose tags have moved, too.
#[utoipa::path(
    get,
    path = "/v1/templates/refs/{ref}/builds",
    operation_id = "list_template_builds_by_ref",
    tag = "templates",
    params(("ref" = String, Path, description = "A reference, percent-encoded or not"), BuildsQuery),
    responses(
        (status = 200, description = "One page of builds.", body = TemplateBuildListResponse),
        (status = 404, description = "There is no such template.", body = ErrorResponse),
    ),
)]
async fn list_template_builds_by_ref(
    state: State<AppState>,
    caller: Caller,
    reference: PathParam,
    query: QueryParams<BuildsQuery>,
) -> Result<Response, ServiceError> {
    names::list_template_builds(state, caller, reference, query).await
}

/// Rename a template
///
/// The old name stays as an alias.
#[utoipa::path(
    post,
    path = "/v1/templates/refs/{ref}/rename",
    operation_id = "rename_template_by_ref",
    tag = "templates",
    params(("ref" = String, Path, description = "A reference, percent-encoded or not")),
    request_body = RenameTemplateRequest,
    responses(
        (status = 200, description = "The template.", body = TemplateInfo),
        (status = 404, description = "There is no such template.", body = ErrorResponse),
        (status = 409, description = "The name is taken.", body = ErrorResponse),
        (status = 501, description = "This deployment has no template store.", body = ErrorResponse),
    ),
)]
async fn rename_template_by_ref(
    state: State<AppState>,
    caller: Caller,
    reference: PathParam,
    request: JsonBody<RenameTemplateRequest>,
) -> Result<Response, ServiceError> {
    names::rename_template(state, caller, reference, request).await
}

/// Say who can use a template
#[utoipa::path(
    patch,
    path = "/v1/templates/refs/{ref}/visibility",
    operation_id = "update_template_visibility_by_ref",
    tag = "templates",
    params(("ref" = String, Path, description = "A reference, percent-encoded or not")),
    request_body = UpdateTemplateVisibilityRequest,
    responses(
        (status = 200, description = "The template.", body = TemplateInfo),
        (status = 404, description = "There is no such template.", body = ErrorResponse),
        (status = 501, description = "This deployment has no template store.", body = ErrorResponse),
    ),
)]
async fn update_template_visibility_by_ref(
    state: State<AppState>,
    caller: Caller,
    reference: PathParam,
    request: JsonBody<UpdateTemplateVisibilityRequest>,
) -> Result<Response, ServiceError> {
    names::update_template_visibility(state, caller, reference, request).await
}

/// Get a template
#[utoipa::path(
    get,
    path = "/v1/templates/refs/{ref}",
    operation_id = "get_template_by_ref",
    tag = "templates",
    params(("ref" = String, Path, description = "A reference, percent-encoded or not"), FieldsQuery),
    responses(
        (status = 200, description = "The template.", body = TemplateInfo),
        (status = 404, description = "There is no such template.", body = ErrorResponse),
        (status = 501, description = "This deployment has no template store.", body = ErrorResponse),
    ),
)]
async fn get_template_by_ref(
    state: State<AppState>,
    caller: Caller,
    reference: PathParam,
    query: QueryParams<FieldsQuery>,
) -> Result<Response, ServiceError> {
    templates::get_template(state, caller, reference, query).await
}

/// Delete a template
#[utoipa::path(
    delete,
    path = "/v1/templates/refs/{ref}",
    operation_id = "delete_template_by_ref",
    tag = "templates",
    params(("ref" = String, Path, description = "A reference, percent-encoded or not")),
    responses(
        (status = 204, description = "It is deleted."),
        (status = 404, description = "There is no such template.", body = ErrorResponse),
        (status = 501, description = "This deployment has no template store.", body = ErrorResponse),
    ),
)]
async fn delete_template_by_ref(
    state: State<AppState>,
    caller: Caller,
    reference: PathParam,
) -> Result<Response, ServiceError> {
    templates::delete_template(state, caller, reference).await
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
