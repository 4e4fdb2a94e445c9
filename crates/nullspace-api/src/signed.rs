//! URLs of one file that work without a key until they expire.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A URL to download a file from.
///
/// Anybody who has it may use it, so it is a secret: it prints nothing.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SignedUrlResponse {
    /// The URL; `GET` it.
    pub url: String,
}

/// A URL to upload a file to. Published clients reject other keys.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SignedUploadUrlResponse {
    /// The URL; `POST` a form with a field `file` to it, or `PUT` or `POST` the bytes.
    pub url: String,
    /// The token in the URL.
    pub token: String,
}

impl std::fmt::Debug for SignedUrlResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SignedUrlResponse(…)")
    }
}

impl std::fmt::Debug for SignedUploadUrlResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SignedUploadUrlResponse(…)")
    }
}
