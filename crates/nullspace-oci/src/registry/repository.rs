//! One repository: from a tag to a pinned, checked description of an image.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::manifest::{
    self, Descriptor, Document, FormatError, Layer, MAX_DOCUMENT, MAX_INDEX_DEPTH, Manifest, media_type,
};
use crate::platform::{Choice, Platform};
use crate::reference::Reference;

use super::credentials::Credentials;
use super::endpoint::{self, Endpoint};
use super::error::RegistryError;
use super::http::Http;

/// A repository with the credentials for it. Cheap to clone; clones share the token.
#[derive(Clone, Debug)]
pub struct Repository {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    http: Arc<Http>,
    reference: Reference,
    endpoints: Vec<Endpoint>,
    /// The endpoint that answered last; it is asked first.
    preferred: AtomicUsize,
}

/// An image, resolved: every part named by digest. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedImage {
    /// The requested reference.
    pub reference: Reference,
    /// Digest of what the reference named: an index or a manifest. This is what `docker pull` prints.
    pub digest: Digest,
    /// Digest of the platform's own manifest. Names the content; cache keys are made of it.
    pub manifest_digest: Digest,
    /// Digest of the config, Docker's "image id".
    pub config_digest: Digest,
    /// The config.
    pub config: ImageConfig,
    /// The layers, lowest first.
    pub layers: Vec<Layer>,
}

impl ResolvedImage {
    /// Length of all layer blobs in bytes.
    pub fn layers_size(&self) -> u64 {
        self.layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.size))
    }
}

/// Where a resolution stands.
#[derive(Clone)]
struct Descent {
    /// Of what the reference named.
    digest: Digest,
    platform: Platform,
    /// An index said that this is for the platform.
    via_index: bool,
    /// Indexes that were entered.
    depth: usize,
}

struct Fetched {
    bytes: Vec<u8>,
    digest: Digest,
    content_type: Option<String>,
}

impl Repository {
    pub(super) fn new(
        http: Arc<Http>,
        reference: Reference,
        credentials: Credentials,
    ) -> Result<Repository, RegistryError> {
        let endpoints = endpoint::endpoints(&http.config, &reference, credentials)?;
        Ok(Repository { inner: Arc::new(Inner { http, reference, endpoints, preferred: AtomicUsize::new(0) }) })
    }

    /// The reference this repository was opened for.
    pub fn reference(&self) -> &Reference {
        &self.inner.reference
    }

    /// Resolves the reference to the image for `platform`. Fetches documents only, no layers.
    pub async fn resolve(&self, platform: Platform) -> Result<ResolvedImage, RegistryError> {
        let fetched = self.manifest(self.inner.reference.selector(), None).await?;
        let digest = fetched.digest.clone();
        self.descend(fetched, Descent { digest, platform, via_index: false, depth: 0 }).await
    }

    /// Follows a document down to the image for the platform.
    async fn descend(&self, mut fetched: Fetched, mut way: Descent) -> Result<ResolvedImage, RegistryError> {
        while way.depth <= MAX_INDEX_DEPTH {
            let what = format!("manifest {}", fetched.digest);
            let format = |source| RegistryError::Format { at: self.at(&what), source };
            match Document::parse(&fetched.bytes, fetched.content_type.as_deref()).map_err(format)? {
                Document::Manifest(manifest) => return self.image(fetched.digest, manifest, way).await,
                Document::Index(entries) => {
                    way.depth += 1;
                    match way.platform.choose_descriptor(&entries) {
                        Choice::One(chosen) => {
                            way.via_index = true;
                            fetched = self.manifest(chosen.digest.as_str(), Some(chosen.size)).await?;
                        }
                        Choice::Unnamed(unnamed, named) => return self.first_that_fits(&unnamed, named, way).await,
                    }
                }
            }
        }
        let source = FormatError::NestedTooDeep(MAX_INDEX_DEPTH);
        Err(RegistryError::Format { at: self.at(&format!("manifest {}", way.digest)), source })
    }

    /// The first of index entries without a platform whose config fits, as containerd has it.
    async fn first_that_fits(
        &self,
        unnamed: &[&Descriptor],
        mut available: Vec<String>,
        way: Descent,
    ) -> Result<ResolvedImage, RegistryError> {
        for entry in unnamed {
            let fetched = self.manifest(entry.digest.as_str(), Some(entry.size)).await?;
            let way = Descent { via_index: false, ..way.clone() };
            // Boxed: it leads back here, for an index inside an index; each level is counted.
            match Box::pin(self.descend(fetched, way)).await {
                Err(RegistryError::UnsupportedPlatform { available: other, .. }) => available.extend(other),
                // A signature or another artifact among the images.
                Err(RegistryError::Format { source: FormatError::UnsupportedMediaType { .. }, .. }) => {}
                found => return found,
            }
        }
        Err(way.platform.unsupported(available).into())
    }

    pub(super) fn http(&self) -> &Http {
        &self.inner.http
    }

    pub(super) fn at(&self, what: &str) -> super::At {
        let preferred = self.inner.preferred.load(Ordering::Relaxed);
        match self.inner.endpoints.get(preferred) {
            Some(endpoint) => endpoint.at(what),
            None => super::At::new(self.inner.reference.registry(), self.inner.reference.repository(), what),
        }
    }

    /// Asks the endpoints in turn, the one that answered last first.
    pub(super) async fn get(
        &self,
        path: &str,
        what: &str,
        accept: Option<&str>,
        offset: u64,
    ) -> Result<reqwest::Response, RegistryError> {
        let inner = &*self.inner;
        let preferred = inner.preferred.load(Ordering::Relaxed);
        let others = (0..inner.endpoints.len()).filter(|&index| index != preferred);
        let mut failures = Vec::new();
        let mut origin = None;
        for index in std::iter::once(preferred).chain(others) {
            let Some(endpoint) = inner.endpoints.get(index) else { continue };
            match endpoint.get(&inner.http, path, what, accept, offset).await {
                Ok(response) => {
                    inner.preferred.store(index, Ordering::Relaxed);
                    return Ok(response);
                }
                Err(error) => {
                    tracing::debug!(%error, "registry endpoint failed");
                    // The registry itself is the last endpoint; its answer counts most.
                    if index + 1 == inner.endpoints.len() { origin = Some(error) } else { failures.push(error) }
                }
            }
        }
        match (origin, failures) {
            (Some(origin), mirrors) if mirrors.is_empty() => Err(origin),
            (Some(origin), mirrors) => Err(RegistryError::AllFailed { origin: Box::new(origin), mirrors }),
            (None, _) => Err(RegistryError::Setup("the repository has no endpoint".to_owned())),
        }
    }

    async fn manifest(&self, selector: &str, size: Option<u64>) -> Result<Fetched, RegistryError> {
        let accept =
            [media_type::OCI_INDEX, media_type::OCI_MANIFEST, media_type::DOCKER_INDEX, media_type::DOCKER_MANIFEST]
                .join(", ");
        let what = format!("manifest {selector}");
        self.document(
            &format!("manifests/{selector}"),
            &what,
            "image manifest",
            selector.parse().ok(),
            size,
            Some(&accept),
        )
        .await
    }

    /// Fetches a document whole, checked against the digest and size that are known of it. A transfer that breaks off is
    /// started again; such a document is small.
    async fn document(
        &self,
        path: &str,
        what: &str,
        kind: &'static str,
        expected: Option<Digest>,
        size: Option<u64>,
        accept: Option<&str>,
    ) -> Result<Fetched, RegistryError> {
        let too_large = |size| RegistryError::Format {
            at: self.at(what),
            source: FormatError::TooLarge { what: kind, size, limit: MAX_DOCUMENT },
        };
        if let Some(size) = size.filter(|&size| size > MAX_DOCUMENT) {
            return Err(too_large(size));
        }
        let mut failure = None;
        for attempt in 0..self.http().config.attempts.max(1) {
            if attempt > 0 {
                self.http().pause(attempt).await;
            }
            let response = self.get(path, what, accept, 0).await?;
            let at = self.at(what);
            let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
            let content_type = header("content-type");
            let announced = header("docker-content-digest").and_then(|digest| digest.parse::<Digest>().ok());
            let bytes = match self.http().body(response, MAX_DOCUMENT, &at).await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => return Err(too_large(MAX_DOCUMENT + 1)),
                Err(error) => {
                    failure = Some(error);
                    continue;
                }
            };
            if let Some(expected) = size.filter(|&size| size != bytes.len() as u64) {
                return Err(RegistryError::SizeMismatch { at, expected, actual: bytes.len() as u64 });
            }
            // A tag says nothing about the content; the registry's own digest at least catches a mangled body.
            let digest = match expected.as_ref().or(announced.as_ref()) {
                Some(wanted) if wanted.matches(&bytes) => wanted.clone(),
                Some(wanted) => {
                    let actual = wanted.of_same_kind(&bytes);
                    return Err(RegistryError::DigestMismatch { at, expected: wanted.clone(), actual });
                }
                None => Digest::sha256(&bytes),
            };
            return Ok(Fetched { bytes, digest, content_type });
        }
        Err(failure.unwrap_or_else(|| RegistryError::Protocol { at: self.at(what), reason: "no answer".to_owned() }))
    }

    async fn image(
        &self,
        manifest_digest: Digest,
        manifest: Manifest,
        way: Descent,
    ) -> Result<ResolvedImage, RegistryError> {
        let at = self.at(&format!("manifest {manifest_digest}"));
        let format = |source| RegistryError::Format { at: at.clone(), source };
        let descriptor = manifest.config.clone();
        let what = format!("config {}", descriptor.digest);
        let path = format!("blobs/{}", descriptor.digest);
        let fetched = self
            .document(&path, &what, "image config", Some(descriptor.digest.clone()), Some(descriptor.size), None)
            .await?;
        let config = ImageConfig::parse(&fetched.bytes)
            .map_err(|source| RegistryError::Format { at: self.at(&what), source })?;
        way.platform.check(&config.platform, way.via_index)?;
        let layers = manifest::layers(manifest, &config, self.http().config.max_layers).map_err(format)?;
        Ok(ResolvedImage {
            reference: self.inner.reference.clone(),
            digest: way.digest,
            manifest_digest,
            config_digest: descriptor.digest,
            config,
            layers,
        })
    }
}
