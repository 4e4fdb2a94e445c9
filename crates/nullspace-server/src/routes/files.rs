//! Files of a sandbox: in JSON for small ones, raw and streamed for all.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{StreamExt, stream};
use nullspace_api::{
    ErrorResponse, ErrorResponseCode, FileExistsResponse200, FileInfo, PathRequest, ReadFileRequest,
    ReadFileRequestEncoding, ReadFileResponse, RenameRequest, SetPermissionsRequest, WriteFileRequest,
    WriteFileRequestEncoding,
};
use nullspace_service::{Caller, Depth, Exhausted, FileAt, LiveSandbox};
use serde::Deserialize;
use serde_json::json as object;
use utoipa::{IntoParams, ToSchema};

use super::answers::json;
use super::blobs::RawBytes;
use super::ranges;
use crate::error::Refusal;
use crate::extract::{JsonBody, OwnSandbox, PathParam, QueryParams, as_it_arrives};
use crate::form::{self, Content};
use crate::long::{self, Long};
use crate::state::AppState;

/// Largest file that is read into a JSON answer, bytes.
const MAX_JSON_FILE: usize = 16 << 20;

/// Read a file
///
/// For files up to 16 MiB; larger ones, and those that are not text, come from `GET /v1/sandboxes/{id}/file`.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/files/read",
    operation_id = "read_file",
    tag = "files",
    params(("id" = String, Path, description = "`sb_…`")),
    request_body(content = ReadFileRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "Its content.", body = ReadFileResponse),
        (status = 404, description = "There is no such sandbox or file.", body = ErrorResponse),
    ),
)]
pub(super) async fn read_file(
    State(state): State<AppState>,
    caller: Caller,
    OwnSandbox(sandbox): OwnSandbox,
    JsonBody(request): JsonBody<ReadFileRequest>,
) -> Result<Response, Refusal> {
    let room = state.budget.room(caller.tenant);
    let mut file = sandbox.read_file(FileAt { path: request.path, user: request.user }).await?;
    let mut content = Vec::new();
    while let Some(piece) = file.content.next().await {
        let piece = piece?;
        let len = content.len().saturating_add(piece.len());
        if len > MAX_JSON_FILE {
            let message =
                format!("The file is larger than {MAX_JSON_FILE} bytes: use `GET /v1/sandboxes/{{id}}/file`.");
            return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorResponseCode::FileError, message));
        }
        if len > content.capacity() {
            let capacity = len.max(2 * content.capacity()).min(MAX_JSON_FILE);
            room.grow(capacity - content.capacity())?;
            content.reserve_exact(capacity - content.len());
        }
        content.extend_from_slice(&piece);
    }
    drop(file);
    let size = content.len() as u64;
    let (content, encoding) = match request.encoding.unwrap_or_default() {
        ReadFileRequestEncoding::Utf8 => {
            let text = String::from_utf8(content).or_else(|error| {
                let bytes = error.into_bytes();
                // Three bytes stand for each that is no text.
                room.grow(2 * bytes.len())?;
                Ok::<_, Exhausted>(String::from_utf8_lossy(&bytes).into_owned())
            })?;
            (Long::Text(text), "utf8")
        }
        ReadFileRequestEncoding::Base64 => (Long::Base64(content), "base64"),
    };
    let answer = object!(ReadFileResponse { content: String::new(), encoding: encoding.into(), size });
    long::without(answer, &["content"]).and_then(|fields| long::object(fields, vec![("content", content)], room))
}

/// Write a file
///
/// In place: an existing one keeps its mode and links, and its owner, unless `user` is given: then it belongs to that user. For content up to the limit of JSON bodies; `PUT
/// /v1/sandboxes/{id}/file` takes any.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/files/write",
    operation_id = "write_file",
    tag = "files",
    params(("id" = String, Path, description = "`sb_…`")),
    request_body(content = WriteFileRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "It is written.", body = FileInfo),
        (status = 403, description = "The sandbox's user may not write there.", body = ErrorResponse),
        (status = 404, description = "There is no such sandbox.", body = ErrorResponse),
    ),
)]
pub(super) async fn write_file(
    State(state): State<AppState>,
    caller: Caller,
    OwnSandbox(sandbox): OwnSandbox,
    JsonBody(request): JsonBody<WriteFileRequest>,
) -> Result<Response, Refusal> {
    let room = state.budget.room(caller.tenant);
    let content = match request.encoding.unwrap_or_default() {
        WriteFileRequestEncoding::Utf8 => Bytes::from(request.content),
        WriteFileRequestEncoding::Base64 => {
            room.grow(request.content.len() / 4 * 3)?;
            STANDARD
                .decode(request.content)
                .map(Bytes::from)
                .map_err(|error| Refusal::invalid(format!("`content` is not base64: {error}.")))?
        }
    };
    let content = stream::once(async move { Ok(content) }).boxed();
    let at = FileAt { path: request.path, user: request.user };
    json(StatusCode::OK, &sandbox.write_file(at, content).await?)
}

/// Which file.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct FileQuery {
    /// Path in the sandbox. A relative one starts at its working directory. With `user` it starts at that user's home, unless
    /// the sandbox was created with a `cwd` of its own.
    path: String,
    /// Who does it; the sandbox's default user.
    user: Option<String>,
}

/// Download a file
///
/// With `Range: bytes=…`, a part of it. The whole file has no `Content-Length`, since the sandbox may change it meanwhile.
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{id}/file",
    operation_id = "download_file",
    tag = "files",
    params(("id" = String, Path, description = "`sb_…`"), FileQuery),
    responses(
        (status = 200, description = "Its bytes."),
        (status = 206, description = "The bytes of the range."),
        (status = 404, description = "There is no such sandbox or file.", body = ErrorResponse),
        (status = 416, description = "The range is outside the file.", body = ErrorResponse),
    ),
)]
pub(super) async fn download_file(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
    QueryParams(query): QueryParams<FileQuery>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let sandbox = state.service.live_sandbox(&caller, &id).await?;
    ranges::download(sandbox, FileAt { path: query.path, user: query.user }, &headers).await
}

/// A form with a file in it.
#[derive(Deserialize, ToSchema)]
#[expect(dead_code, reason = "a schema")]
pub(super) struct UploadFileMultipartFilesBody {
    /// The file.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
}

/// A form, or the file itself.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "a schema")]
pub(super) enum FormOrBytes {
    Form(UploadFileMultipartFilesBody),
    #[schema(value_type = String, format = Binary)]
    Bytes(Vec<u8>),
}

/// Upload a file
///
/// The body is the file, of any size the sandbox's disk has room for.
#[utoipa::path(
    put,
    path = "/v1/sandboxes/{id}/file",
    operation_id = "upload_file_raw",
    tag = "files",
    params(("id" = String, Path, description = "`sb_…`"), FileQuery),
    request_body(content = inline(RawBytes), content_type = "application/octet-stream"),
    responses(
        (status = 204, description = "It is written."),
        (status = 403, description = "The sandbox's user may not write there.", body = ErrorResponse),
        (status = 404, description = "There is no such sandbox.", body = ErrorResponse),
    ),
)]
pub(super) async fn upload_file_raw(
    State(state): State<AppState>,
    OwnSandbox(sandbox): OwnSandbox,
    QueryParams(query): QueryParams<FileQuery>,
    request: Request,
) -> Result<Response, Refusal> {
    let content = body(&state, request);
    upload(&*sandbox, FileAt { path: query.path, user: query.user }, content).await
}

/// Upload a file from a form
///
/// The field `file` of a `multipart/form-data` body; any other body is taken as the file itself.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/file",
    operation_id = "upload_file_multipart",
    tag = "files",
    params(("id" = String, Path, description = "`sb_…`"), FileQuery),
    request_body(content = inline(Option<FormOrBytes>), content_type = "application/octet-stream"),
    responses(
        (status = 204, description = "It is written."),
        (status = 403, description = "The sandbox's user may not write there.", body = ErrorResponse),
        (status = 404, description = "There is no such sandbox.", body = ErrorResponse),
    ),
)]
pub(super) async fn upload_file_multipart(
    State(state): State<AppState>,
    OwnSandbox(sandbox): OwnSandbox,
    QueryParams(query): QueryParams<FileQuery>,
    request: Request,
) -> Result<Response, Refusal> {
    let boundary = form::boundary(request.headers())?;
    let content = body(&state, request);
    let content = match boundary {
        None => content,
        Some(boundary) => form::file(content, boundary, "file").await?,
    };
    upload(&*sandbox, FileAt { path: query.path, user: query.user }, content).await
}

/// Writes a file from a body. When the body broke off, the answer says what was wrong with it.
async fn upload(sandbox: &dyn LiveSandbox, at: FileAt, content: Content) -> Result<Response, Refusal> {
    let broke = Arc::new(Mutex::new(None));
    let noted = Arc::clone(&broke);
    let content = content.map(move |piece| {
        piece.map_err(|refusal| {
            *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
            io::Error::other("the body broke off")
        })
    });
    let written = sandbox.write_file(at, content.boxed()).await;
    if let Some(refusal) = broke.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(refusal);
    }
    written?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The body as it arrives, with faults in words for the caller.
pub(super) fn body(state: &AppState, request: Request) -> Content {
    let seconds = state.config.body_timeout.as_secs();
    let explained = move |error: io::Error| match error.kind() {
        io::ErrorKind::TimedOut => {
            let message = format!("Nothing of the body arrived for {seconds} s.");
            Refusal::new(StatusCode::REQUEST_TIMEOUT, ErrorResponseCode::InvalidRequest, message)
        }
        _ => Refusal::invalid("The body ended early.").with_source(error),
    };
    as_it_arrives(request, &state.config).map(move |piece| piece.map_err(explained)).boxed()
}

/// Which directory.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Path in the sandbox; its working directory.
    path: Option<String>,
    /// 1: its entries; 2: also those of its directories; at most 32. Default 1.
    depth: Option<u32>,
    /// Who does it; the sandbox's default user.
    user: Option<String>,
}

/// List a directory
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{id}/files",
    operation_id = "list_dir",
    tag = "files",
    params(("id" = String, Path, description = "`sb_…`"), ListQuery),
    responses(
        (status = 200, description = "Its entries, by path.", body = Vec<FileInfo>),
        (status = 404, description = "There is no such sandbox or directory.", body = ErrorResponse),
    ),
)]
pub(super) async fn list_dir(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
    QueryParams(query): QueryParams<ListQuery>,
) -> Result<Response, Refusal> {
    let at = FileAt { path: query.path.unwrap_or_else(|| ".".into()), user: query.user };
    let depth = Depth::try_from(query.depth.unwrap_or(1))?;
    let room = state.budget.room(caller.tenant);
    let sandbox = state.service.live_sandbox(&caller, &id).await?;
    json(StatusCode::OK, &sandbox.list_files(at, depth, &room).await?)
}

/// Look at a file
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/files/info",
    operation_id = "file_info",
    tag = "files",
    params(("id" = String, Path, description = "`sb_…`")),
    request_body = PathRequest,
    responses(
        (status = 200, description = "What it is.", body = FileInfo),
        (status = 404, description = "There is no such sandbox or file.", body = ErrorResponse),
    ),
)]
pub(super) async fn file_info(
    OwnSandbox(sandbox): OwnSandbox,
    JsonBody(request): JsonBody<PathRequest>,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &sandbox.file_info(FileAt { path: request.path, user: request.user }).await?)
}

/// Ask whether a file exists
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/files/exists",
    operation_id = "file_exists",
    tag = "files",
    params(("id" = String, Path, description = "`sb_…`")),
    request_body = PathRequest,
    responses(
        (status = 200, description = "Whether it does.", body = FileExistsResponse200),
        (status = 404, description = "There is no such sandbox.", body = ErrorResponse),
    ),
)]
pub(super) async fn file_exists(
    OwnSandbox(sandbox): OwnSandbox,
    JsonBody(request): JsonBody<PathRequest>,
) -> Result<Response, Refusal> {
    let exists = sandbox.file_exists(FileAt { path: request.path, user: request.user }).await?;
    json(StatusCode::OK, &FileExistsResponse200 { exists })
}

/// Make a directory
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/files/mkdir",
    operation_id = "make_dir",
    tag = "files",
    params(("id" = String, Path, description = "`sb_…`")),
    request_body = PathRequest,
    responses(
        (status = 204, description = "It is there, with those above it."),
        (status = 404, description = "There is no such sandbox.", body = ErrorResponse),
        (status = 409, description = "A file is in its place.", body = ErrorResponse),
    ),
)]
pub(super) async fn make_dir(
    OwnSandbox(sandbox): OwnSandbox,
    JsonBody(request): JsonBody<PathRequest>,
) -> Result<Response, Refusal> {
    sandbox.make_dir(FileAt { path: request.path, user: request.user }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Remove a file or directory
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/files/remove",
    operation_id = "remove_file",
    tag = "files",
    params(("id" = String, Path, description = "`sb_…`")),
    request_body = PathRequest,
    responses(
        (status = 204, description = "It is gone, with all that was in it."),
        (status = 404, description = "There is no such sandbox or file.", body = ErrorResponse),
    ),
)]
pub(super) async fn remove_file(
    OwnSandbox(sandbox): OwnSandbox,
    JsonBody(request): JsonBody<PathRequest>,
) -> Result<Response, Refusal> {
    sandbox.remove_file(FileAt { path: request.path, user: request.user }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Rename a file or directory
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/files/rename",
    operation_id = "rename_file",
    tag = "files",
    params(("id" = String, Path, description = "`sb_…`")),
    request_body = RenameRequest,
    responses(
        (status = 200, description = "What it is now.", body = FileInfo),
        (status = 404, description = "There is no such sandbox or file.", body = ErrorResponse),
        (status = 409, description = "Something else is in the new place.", body = ErrorResponse),
    ),
)]
pub(super) async fn rename_file(
    OwnSandbox(sandbox): OwnSandbox,
    JsonBody(request): JsonBody<RenameRequest>,
) -> Result<Response, Refusal> {
    let at = FileAt { path: request.old_path, user: request.user };
    json(StatusCode::OK, &sandbox.rename_file(at, request.new_path).await?)
}

/// Set a file's permissions
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/files/permissions",
    operation_id = "set_file_permissions",
    tag = "files",
    params(("id" = String, Path, description = "`sb_…`")),
    request_body = SetPermissionsRequest,
    responses(
        (status = 204, description = "They are set."),
        (status = 403, description = "The sandbox's user may not.", body = ErrorResponse),
        (status = 404, description = "There is no such sandbox or file.", body = ErrorResponse),
    ),
)]
pub(super) async fn set_file_permissions(
    OwnSandbox(sandbox): OwnSandbox,
    JsonBody(request): JsonBody<SetPermissionsRequest>,
) -> Result<Response, Refusal> {
    let at = FileAt { path: request.path, user: request.user };
    sandbox.set_file_permissions(at, &request.permissions).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
