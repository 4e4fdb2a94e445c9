//! Objects in a bucket of an S3 store.
//!
//! ```text
//!   Objects ──one try──> S3 ──> object_store (signatures, XML) ──> http (limits, typed failures) ──> store
//! ```
//! `object_store` repeats nothing here: [`Objects`](crate::Objects) does, for every kind of store alike.

mod answer;
mod credentials;
mod http;
mod settings;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, RetryConfig};
use reqwest::StatusCode;
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::backend::{Backend, Entry, Pages, Put, Reading, Upload};
use crate::{Error, ObjectName, Result};
pub use credentials::S3Credentials;
use http::{Connector, Refusal, cause};
pub use settings::{InvalidSetting, S3Settings};

/// A bucket.
#[derive(Clone)]
pub(crate) struct S3 {
    inner: Arc<Inner>,
}

struct Inner {
    store: AmazonS3,
    bucket: String,
    prefix: Option<ObjectName>,
    /// Whether the store refuses to replace an object, found out by the first put.
    conditional: OnceCell<bool>,
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { bucket, prefix, conditional, .. } = &*self.inner;
        let conditional = conditional.get();
        f.debug_struct("S3")
            .field("bucket", bucket)
            .field("prefix", prefix)
            .field("conditional", &conditional)
            .finish_non_exhaustive()
    }
}

impl S3 {
    pub(crate) fn open(settings: S3Settings) -> Result<S3> {
        let refused = InvalidSetting::refused;
        let (prefix, address) = (settings.prefix().map_err(refused)?, settings.address().map_err(refused)?);
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&settings.bucket)
            .with_region(&settings.region)
            .with_virtual_hosted_style_request(!address.path_style)
            .with_credentials(Arc::new(credentials::Provider::new(&settings.credentials)?))
            .with_disable_bulk_delete(true)
            .with_http_connector(Connector::new(settings.extra_ca_pem.as_deref(), address.loopback)?)
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() });
        if let Some(endpoint) = address.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        let store =
            builder.build().map_err(|error| Error::Invalid(format!("set up the S3 store: {}", http::root(&error))))?;
        let inner = Inner { store, bucket: settings.bucket, prefix, conditional: OnceCell::new() };
        Ok(S3 { inner: Arc::new(inner) })
    }

    /// The key of an object.
    fn key(&self, name: &ObjectName) -> Path {
        match &self.inner.prefix {
            None => Path::from(name.as_str()),
            Some(prefix) => Path::from(format!("{prefix}/{name}")),
        }
    }

    /// Puts an object, only where there is none if `create`.
    async fn put_as(&self, key: &Path, data: Bytes, create: bool) -> object_store::Result<()> {
        let mode = if create { PutMode::Create } else { PutMode::Overwrite };
        let options = PutOptions { mode, ..PutOptions::default() };
        self.inner.store.put_opts(key, PutPayload::from_bytes(data), options).await.map(drop)
    }

    /// Whether the store refuses a conditional put of a name that is taken. Some ignore the condition, some lack it.
    async fn conditional(&self) -> Result<bool> {
        let probe = || async {
            let id = Uuid::new_v4().as_simple().to_string();
            let key = self
                .key(&ObjectName::parse(&format!("check/{id}")).map_err(|error| Error::Invalid(error.to_string()))?);
            let tried = async {
                for _ in 0..2 {
                    match self.put_as(&key, Bytes::from_static(b"conditional put"), true).await {
                        Ok(()) => {}
                        Err(error) if is(&error, StatusCode::PRECONDITION_FAILED) => return Ok(true),
                        Err(error) if is(&error, StatusCode::NOT_IMPLEMENTED) => return Ok(false),
                        Err(error) => return Err(answer::error(&error, None)),
                    }
                }
                Ok(false)
            };
            let tried = tried.await;
            let deleted = self.inner.store.delete(&key).await;
            let conditional = tried?;
            if let Err(error) = deleted
                && !is(&error, StatusCode::NOT_FOUND)
            {
                return Err(answer::error(&error, None));
            }
            if !conditional {
                tracing::info!(
                    bucket = self.inner.bucket,
                    "the S3 store has no conditional put; each put asks for the name before"
                );
            }
            Ok(conditional)
        };
        self.inner.conditional.get_or_try_init(probe).await.copied()
    }
}

/// Whether the store refused with this status.
fn is(error: &object_store::Error, status: StatusCode) -> bool {
    cause::<Refusal>(error).is_some_and(|refusal| refusal.status == status)
}

#[async_trait]
impl Backend for S3 {
    async fn put(&self, name: &ObjectName, data: Bytes) -> Result<Put> {
        let conditional = self.conditional().await?;
        if !conditional && self.size(name).await?.is_some() {
            return Ok(Put::Exists);
        }
        match self.put_as(&self.key(name), data, conditional).await {
            Ok(()) => Ok(Put::Stored),
            Err(error) if is(&error, StatusCode::PRECONDITION_FAILED) => Ok(Put::Exists),
            Err(error) => Err(answer::error(&error, None)),
        }
    }

    async fn begin(&self, name: &ObjectName) -> Result<Box<dyn Upload>> {
        let key = self.key(name);
        let id = self.inner.store.create_multipart(&key).await.map_err(|error| answer::error(&error, None))?;
        Ok(Box::new(S3Upload { s3: self.clone(), name: name.clone(), key, id, parts: Mutex::default() }))
    }

    async fn get(&self, name: &ObjectName, range: Option<Range<u64>>) -> Result<Reading> {
        let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
        let answered = match self.inner.store.get_opts(&self.key(name), options).await {
            Ok(answered) => answered,
            // The object ends before the range: its length tells the caller so.
            Err(error) if is(&error, StatusCode::RANGE_NOT_SATISFIABLE) => {
                let Some(object_bytes) = self.size(name).await? else { return Err(Error::not_found(name)) };
                return Ok(Reading { object_bytes, mark: None, body: stream::empty().boxed() });
            }
            Err(error) => return Err(answer::error(&error, Some(name))),
        };
        let (object_bytes, mark) = (answered.meta.size, answered.meta.e_tag.clone());
        let name = name.clone();
        let body = answered.into_stream().map_err(move |error| answer::error(&error, Some(&name))).boxed();
        Ok(Reading { object_bytes, mark, body })
    }

    async fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        let key = self.key(name);
        match self.inner.store.head(&key).await {
            Ok(meta) => return Ok(Some(meta.size)),
            Err(error) => {
                if let error @ Error::Unavailable { .. } = answer::error(&error, Some(name)) {
                    return Err(error);
                }
            }
        }
        // The answer to HEAD has no document: whether the object is missing or the bucket, and why it is refused, is unknown.
        let options = GetOptions { range: Some(GetRange::Bounded(0..1)), ..GetOptions::default() };
        match self.inner.store.get_opts(&key, options).await {
            Ok(answered) => Ok(Some(answered.meta.size)),
            Err(error) if is(&error, StatusCode::RANGE_NOT_SATISFIABLE) => Ok(Some(0)),
            Err(error) => match answer::error(&error, Some(name)) {
                Error::NotFound { .. } => Ok(None),
                error => Err(error),
            },
        }
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        match self.inner.store.delete(&self.key(name)).await {
            Ok(()) => Ok(()),
            Err(error) => match answer::error(&error, Some(name)) {
                Error::NotFound { .. } => Ok(()),
                error => Err(error),
            },
        }
    }

    fn list(&self, folder: Option<&ObjectName>) -> Box<dyn Pages> {
        Box::new(S3Pages { s3: self.clone(), below: folder.cloned(), next: Next::First })
    }
}

/// A multipart upload.
struct S3Upload {
    s3: S3,
    name: ObjectName,
    key: Path,
    id: String,
    parts: Mutex<BTreeMap<usize, PartId>>,
}

impl fmt::Debug for S3Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Upload").field("name", &self.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl Upload for S3Upload {
    async fn part(&self, index: usize, data: Bytes) -> Result<()> {
        let part = self.s3.inner.store.put_part(&self.key, &self.id, index, PutPayload::from_bytes(data)).await;
        let part = part.map_err(|error| match answer::error(&error, Some(&self.name)) {
            // Not the object is missing, but the upload: the store dropped it.
            Error::NotFound { .. } => Error::damaged(&self.name, "the store lost its parts: store it again"),
            error => error,
        })?;
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).insert(index, part);
        Ok(())
    }

    async fn complete(&self) -> Result<Put> {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner).clone().into_values().collect();
        match self.s3.inner.store.complete_multipart(&self.key, &self.id, parts).await {
            Ok(_) => Ok(Put::Stored),
            Err(error) => Err(answer::error(&error, Some(&self.name))),
        }
    }

    async fn abort(&self) -> Result<()> {
        let aborted = self.s3.inner.store.abort_multipart(&self.key, &self.id).await;
        aborted.map_err(|error| answer::error(&error, Some(&self.name)))
    }
}

/// A listing, page by page.
struct S3Pages {
    s3: S3,
    below: Option<ObjectName>,
    next: Next,
}

/// The page that comes next.
#[derive(Clone, PartialEq, Eq)]
enum Next {
    First,
    After(String),
    End,
}

#[async_trait]
impl Pages for S3Pages {
    async fn next(&mut self) -> Result<Option<Vec<Entry>>> {
        let page_token = match &self.next {
            Next::First => None,
            Next::After(token) => Some(token.clone()),
            Next::End => return Ok(None),
        };
        let prefix = match (&self.s3.inner.prefix, &self.below) {
            (None, None) => None,
            (Some(prefix), None) => Some(format!("{prefix}/")),
            (None, Some(below)) => Some(format!("{below}/")),
            (Some(prefix), Some(below)) => Some(format!("{prefix}/{below}/")),
        };
        let options = PaginatedListOptions { page_token, ..PaginatedListOptions::default() };
        let page = self.s3.inner.store.list_paginated(prefix.as_deref(), options).await;
        let page = page.map_err(|error| answer::error(&error, None))?;
        let next = page.page_token.map_or(Next::End, Next::After);
        if next != Next::End && next == self.next {
            return Err(Error::unavailable("the store lists the same page again"));
        }
        self.next = next;
        let own = self.s3.inner.prefix.as_ref().map_or(0, |prefix| prefix.as_str().len() + 1);
        let entry = |object: object_store::ObjectMeta| {
            let name = object.location.as_ref().get(own..).and_then(|name| ObjectName::parse(name).ok());
            if name.is_none() {
                tracing::debug!(key = %object.location, "not the name of an object");
            }
            Some(Entry { name: name?, bytes: object.size, modified: object.last_modified.into() })
        };
        Ok(Some(page.result.objects.into_iter().filter_map(entry).collect()))
    }
}
