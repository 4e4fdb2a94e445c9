//! Requests for one file that are signed instead of sent with a key.
//!
//! ```text
//!   caller with a key ── sign_file(sandbox, path, user, transfer) ──> token      goes into a URL
//!   anybody with the URL ── signed_caller(the same, token) ──────────> the caller, while token, key and sandbox hold
//! ```

use async_trait::async_trait;

use crate::{Caller, Result};

/// The direction of a transfer of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    /// From the sandbox.
    Download,
    /// To the sandbox.
    Upload,
}

/// A file of a sandbox, and what may be done with it: what a token is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignedFile<'r> {
    /// Id of the sandbox, as it is written in the URL.
    pub sandbox: &'r str,
    /// Path in the sandbox, as it is given.
    pub path: &'r str,
    /// The user, as it is given.
    pub user: Option<&'r str>,
    /// The direction.
    pub transfer: Transfer,
}

/// Tokens for one file. A token holds for an hour, as long as the key that made it.
#[async_trait]
pub trait SignedFiles: Send + Sync + 'static {
    /// Makes a token for a file of the caller's own sandbox. The file need not exist.
    async fn sign_file(&self, caller: &Caller, file: SignedFile<'_>) -> Result<String>;

    /// Returns the caller that made this token; `None` when it is none for exactly this file, has expired, or its key is over.
    async fn signed_caller(&self, file: SignedFile<'_>, token: &str) -> Result<Option<Caller>>;
}
