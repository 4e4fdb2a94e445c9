//! Writing many files with one request, with a result for each.
//!
//! ```text
//!   multipart/form-data
//!     manifest   {"files": [{"path": "a.txt", "field": "file0"}, …], "user": …}      first
//!     file0      content, streamed into the sandbox                                  in any order, one at a time
//!     …
//!   200 {"results": [{"status": "success", "path", "info"} | {"status": "error", "path", "error"}, …]}
//! ```
//! A file that cannot be written is a result, and the files behind it are written. What concerns all of them, such as a
//! sandbox that ends or a body that breaks off, is the error of the request; files before it are written then.

use std::collections::HashMap;
use std::io;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use futures::{StreamExt, stream};
use nullspace_api::{
    BatchManifest, BatchWriteEntry, BatchWriteErrorEntry, BatchWriteResponse, BatchWriteSuccessEntry, ErrorResponse,
    ErrorResponseCode, FileInfo,
};
use nullspace_service::{Caller, Error, FileAt, LiveSandbox};
use serde::Deserialize;
use tokio::sync::mpsc;
use utoipa::ToSchema;

use super::answers::json;
use super::files::body;
use crate::error::Refusal;
use crate::extract::{OwnSandbox, without_value};
use crate::form::{self, Fields};
use crate::state::AppState;

/// Most files of a batch.
const MAX_FILES: usize = 1000;
/// Most fields of a form that its manifest does not name.
const MAX_OTHERS: usize = 32;
/// Largest manifest, bytes.
const MAX_MANIFEST: usize = 1 << 20;
/// Memory of a result beside its path, bytes: an estimate, above most.
const RESULT: usize = 1 << 10;

/// A form: its manifest, then the files that it names.
#[derive(Deserialize, ToSchema)]
#[expect(dead_code, reason = "a schema")]
pub(super) struct BatchWriteFilesBody {
    /// JSON: `{"files": [{"path": "a.txt", "field": "file0"}], "user": "app"}`. The first field of the form; the contents
    /// are the fields that it names.
    manifest: String,
}

/// Write many files
///
/// A `multipart/form-data` body with the field `manifest` first. Each file has a result of its own, in the order of the
/// manifest.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/files/batch-write",
    operation_id = "batch_write_files",
    tag = "files",
    params(("id" = String, Path, description = "`sb_…`")),
    request_body(content = BatchWriteFilesBody, content_type = "application/octet-stream"),
    responses(
        (status = 200, description = "The results.", body = BatchWriteResponse),
        (status = 404, description = "There is no such sandbox.", body = ErrorResponse),
    ),
)]
pub(super) async fn batch_write_files(
    State(state): State<AppState>,
    caller: Caller,
    OwnSandbox(sandbox): OwnSandbox,
    request: Request,
) -> Result<Response, Refusal> {
    let Some(boundary) = form::boundary(request.headers())? else {
        return Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ErrorResponseCode::InvalidRequest,
            "The body must be a form: send `Content-Type: multipart/form-data`, with the field `manifest` first.",
        ));
    };
    let room = state.budget.room(caller.tenant);
    let mut fields = Fields::new(body(&state, request), boundary);
    if fields.next().await?.as_deref() != Some("manifest") {
        return Err(Refusal::invalid("The form is wrong: its first field must be `manifest`."));
    }
    let mut text = Vec::new();
    while let Some(piece) = fields.piece().await? {
        if text.len() + piece.len() > MAX_MANIFEST {
            return Err(Refusal::invalid(format!("`manifest` is larger than {MAX_MANIFEST} bytes.")));
        }
        // The text, and what is made of it.
        room.grow(2 * piece.len())?;
        text.extend_from_slice(&piece);
    }
    let BatchManifest { files, user } = serde_json::from_slice(&text)
        .map_err(|error| Refusal::invalid(format!("`manifest` is wrong: {}.", without_value(&error.to_string()))))?;
    if files.len() > MAX_FILES {
        return Err(Refusal::invalid(format!("`manifest` has more than {MAX_FILES} files: send them in parts.")));
    }
    room.grow(files.iter().map(|file| RESULT + 2 * file.path.len()).sum())?;
    let mut places = HashMap::new();
    for (index, file) in files.iter().enumerate() {
        if places.insert(file.field.clone(), index).is_some() {
            return Err(Refusal::invalid(format!("`manifest` names field `{}` twice.", file.field)));
        }
    }

    let mut results: Vec<Option<Result<FileInfo, Error>>> = files.iter().map(|_| None).collect();
    let mut others = 0;
    while let Some(name) = fields.next().await? {
        let index = places.remove(&name);
        let Some((index, file)) = index.and_then(|index| Some((index, files.get(index)?))) else {
            others += 1;
            if others > MAX_OTHERS {
                let message =
                    format!("The form is wrong: it has more than {MAX_OTHERS} fields that are not in its manifest.");
                return Err(Refusal::invalid(message));
            }
            continue;
        };
        let written = write(&*sandbox, FileAt { path: file.path.clone(), user: user.clone() }, &mut fields).await?;
        if let Some(result) = results.get_mut(index) {
            *result = Some(written);
        }
    }
    let results = files.into_iter().zip(results).map(|(file, result)| {
        let error = match result {
            Some(Ok(info)) => {
                let status = Default::default();
                return BatchWriteEntry::Success(BatchWriteSuccessEntry { status, path: file.path, info });
            }
            Some(Err(error)) => error.message,
            None => format!("The form has no field `{}`.", file.field),
        };
        BatchWriteEntry::Error(BatchWriteErrorEntry { status: Default::default(), path: file.path, error })
    });
    json(StatusCode::OK, &BatchWriteResponse { results: results.collect() })
}

/// Writes one file from the form's current field. The outer error ends the batch.
async fn write(sandbox: &dyn LiveSandbox, at: FileAt, fields: &mut Fields) -> Result<Result<FileInfo, Error>, Refusal> {
    // One piece at a time: the form is read as fast as the sandbox takes it.
    let (pieces, taken) = mpsc::channel::<io::Result<Bytes>>(1);
    let content = stream::unfold(taken, async |mut taken| taken.recv().await.map(|piece| (piece, taken)));
    let pump = async {
        loop {
            match fields.piece().await {
                Ok(Some(piece)) => {
                    if pieces.send(Ok(piece)).await.is_err() {
                        // The writing has ended before the content; its result says why.
                        break;
                    }
                }
                Ok(None) => break,
                Err(refusal) => {
                    let _ = pieces.send(Err(io::Error::other("the body broke off"))).await;
                    return Err(refusal);
                }
            }
        }
        drop(pieces);
        Ok(())
    };
    let (written, pumped) = tokio::join!(sandbox.write_file(at, content.boxed()), pump);
    pumped?;
    match written {
        Err(error) if !of_one_file(&error) => Err(error.into()),
        written => Ok(written),
    }
}

/// Whether other files may succeed where this one has failed.
fn of_one_file(error: &Error) -> bool {
    use ErrorResponseCode as Code;
    matches!(error.code, Code::FileError | Code::NotFound | Code::InvalidRequest)
}
