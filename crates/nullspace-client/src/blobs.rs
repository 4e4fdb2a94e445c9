//! Files of build contexts.

use std::path::Path;
use std::time::Duration;

use nullspace_api::{TemplateBlobPreflightRequest, TemplateBlobPreflightResponse};
use reqwest::{Body, Method, header};
use tokio::fs::File;

use crate::{Client, Error, MAX_RETRY_AFTER, RETRIES, Result, TIMEOUT, answered};

/// Time limit of an upload. Files may be gigabytes.
const UPLOAD: Duration = Duration::from_secs(3600);
const OPERATION: &str = "upload a file";

impl Client {
    /// The blob ids of files, and which of them have to be uploaded.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn preflight_blobs(
        &self,
        request: &TemplateBlobPreflightRequest,
    ) -> Result<TemplateBlobPreflightResponse> {
        let url = self.url(&["v1", "templates", "blobs", "preflight"])?;
        self.call(Method::POST, url, Some(request), TIMEOUT, "ask for missing files").await
    }

    /// Upload a file of so many bytes. Its content must be what the blob id says.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn upload_blob(&self, blob_id: &str, path: &Path, bytes: u64) -> Result<()> {
        let url = self.url(&["v1", "templates", "blobs", blob_id])?;
        let mut retries = 0;
        loop {
            let unreadable = |source: std::io::Error| Error::Unreadable {
                operation: OPERATION,
                what: format!("{}: {source}", path.display()),
            };
            let file = File::open(path).await.map_err(unreadable)?;
            let request = self.request(Method::PUT, url.clone()).timeout(UPLOAD);
            let request = request.header(header::CONTENT_TYPE, "application/octet-stream");
            let request = request.header(header::CONTENT_LENGTH, bytes).body(Body::from(file));
            match answered(request, OPERATION).await {
                Err(Error::Answer { retry_after: Some(after), .. })
                    if retries < RETRIES && after <= MAX_RETRY_AFTER =>
                {
                    retries += 1;
                    tokio::time::sleep(after).await;
                }
                answer => return answer.map(drop),
            }
        }
    }
}
