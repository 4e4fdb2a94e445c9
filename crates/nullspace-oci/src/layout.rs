//! OCI image layouts (image-spec, `image-layout.md`): a folder, or a tar of one, as `skopeo`, `buildctl --output
//! type=oci` and `docker save` write them; and what older `docker save`s write (`docker`).
//!
//! ```text
//!  oci-layout   index.json ─▶ [index ─▶] manifest ─▶ config, layers      each a file blobs/<algorithm>/<hex>
//! ```
//!
//! A layout is as foreign as a registry: every document is bounded and checked against its digest, files are found by
//! digest only, and symlinks among them are not followed.

mod docker;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::manifest::{self, Descriptor, Document, FormatError, Layer, MAX_DOCUMENT, MAX_INDEX_DEPTH};
use crate::platform::{Choice, OfferedPlatform, Platform, UnsupportedPlatform};
use crate::tar::{EntryKind, TarError, TarLimits, TarReader};

const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Most files in a layout's tar.
const MAX_FILES: usize = 100_000;
/// Most layers in an image.
const MAX_LAYERS: usize = 256;

/// Why a layout cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A file of it cannot be read.
    #[error("read {file} of the image layout: {source}")]
    Io {
        /// Which file.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// The tar is malformed.
    #[error("read the image layout's tar: {0}")]
    Tar(#[from] TarError),
    /// There is no `index.json`, or far too many files.
    #[error("this is not an OCI image layout: {0}")]
    NotALayout(&'static str),
    /// A blob is missing.
    #[error("the image layout lacks {0}")]
    Missing(Digest),
    /// A document is not what its digest says.
    #[error("{expected} in the image layout has digest {actual}")]
    DigestMismatch {
        /// Its name.
        expected: Digest,
        /// Its content's.
        actual: Digest,
    },
    /// A blob has another length than its descriptor says.
    #[error("{digest} in the image layout has {actual} bytes, expected {expected}")]
    SizeMismatch {
        /// The blob.
        digest: Digest,
        /// From the descriptor.
        expected: u64,
        /// In the layout.
        actual: u64,
    },
    /// No image of that name.
    #[error("the image layout has no image named \"{0}\"")]
    NoSuchName(String),
    /// Nothing in it runs here.
    #[error(transparent)]
    UnsupportedPlatform(#[from] UnsupportedPlatform),
    /// A document cannot be used.
    #[error("{what} in the image layout: {source}")]
    Format {
        /// Which document.
        what: String,
        /// Why.
        source: FormatError,
    },
}

/// An opened layout.
#[derive(Clone, Debug)]
pub struct Layout {
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Folder(PathBuf),
    /// Where each file's content is in the tar: offset and length.
    Tar {
        path: PathBuf,
        files: HashMap<String, (u64, u64)>,
    },
}

/// An image in a layout.
#[derive(Clone, Debug)]
pub struct LocalImage {
    place: Place,
    /// Digest of what `index.json` named: an index or a manifest. Where there is none, the config's.
    pub digest: Digest,
    /// Digest of the platform's own manifest. Where there is none, the config's.
    pub manifest_digest: Digest,
    /// Digest of the config.
    pub config_digest: Digest,
    /// The config.
    pub config: ImageConfig,
    /// The layers, lowest first.
    pub layers: Vec<Layer>,
}

impl Layout {
    /// Opens a folder or an uncompressed tar. A tar is read through once, to find the files in it.
    pub fn open(path: &Path) -> Result<Layout, LayoutError> {
        let failed = |source| LayoutError::Io { file: "the top".to_owned(), source };
        if path.metadata().map_err(failed)?.is_dir() {
            return Ok(Layout { place: Place::Folder(path.to_owned()) });
        }
        let file = File::open(path).map_err(failed)?;
        let mut tar = TarReader::new(BufReader::with_capacity(256 << 10, file), TarLimits::default());
        let mut files = HashMap::new();
        while let Some(entry) = tar.next_entry()? {
            let Ok(name) = String::from_utf8(entry.path) else { continue };
            if entry.kind == EntryKind::File {
                files.insert(name.trim_start_matches("./").to_owned(), (tar.offset(), entry.size));
            }
            if files.len() > MAX_FILES {
                return Err(LayoutError::NotALayout("it has too many files"));
            }
        }
        Ok(Layout { place: Place::Tar { path: path.to_owned(), files } })
    }

    /// The image of this name (`org.opencontainers.image.ref.name`), or the only one, or the one for the platform.
    pub fn resolve(&self, platform: Platform, name: Option<&str>) -> Result<LocalImage, LayoutError> {
        if let Place::Tar { path, files } = &self.place
            && !files.contains_key("index.json")
            && files.contains_key(docker::MANIFEST)
        {
            return docker::resolve(path, files, platform, name);
        }
        let index = self.place.document("index.json").map_err(|error| match error {
            LayoutError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                LayoutError::NotALayout("it has no index.json")
            }
            other => other,
        })?;
        let format = |what: &str, source| LayoutError::Format { what: what.to_owned(), source };
        let Document::Index(mut entries) =
            Document::parse(&index, None).map_err(|error| format("index.json", error))?
        else {
            return Err(LayoutError::NotALayout("its index.json is not an index"));
        };
        if let Some(name) = name {
            entries.retain(|entry| entry.annotations.get(REF_NAME).is_some_and(|found| found == name));
            if entries.is_empty() {
                return Err(LayoutError::NoSuchName(name.to_owned()));
            }
        }
        match entries.as_slice() {
            [only] => self.descend(only, platform, false, 0),
            several => self.chosen(several, platform, 0),
        }
    }

    /// The image for the platform among an index's entries.
    fn chosen(&self, entries: &[Descriptor], platform: Platform, depth: usize) -> Result<LocalImage, LayoutError> {
        let (unnamed, mut available) = match platform.choose_descriptor(entries) {
            Choice::One(chosen) => return self.descend(chosen, platform, true, depth),
            Choice::Unnamed(unnamed, named) => (unnamed, named),
        };
        // At the top they are different images, of which the caller names one.
        if depth == 0 && unnamed.len() > 1 {
            available.push(OfferedPlatform::default().to_string());
            return Err(platform.unsupported(available).into());
        }
        for entry in unnamed {
            match self.descend(entry, platform, false, depth) {
                Err(LayoutError::UnsupportedPlatform(other)) => available.extend(other.available),
                Err(LayoutError::Format { source: FormatError::UnsupportedMediaType { .. }, .. }) => {}
                found => return found,
            }
        }
        Err(platform.unsupported(available).into())
    }

    /// Follows a document down to the image for the platform.
    fn descend(
        &self,
        chosen: &Descriptor,
        platform: Platform,
        via_index: bool,
        depth: usize,
    ) -> Result<LocalImage, LayoutError> {
        let format = |what: &str, source| LayoutError::Format { what: what.to_owned(), source };
        let what = chosen.digest.to_string();
        if depth > MAX_INDEX_DEPTH {
            return Err(format(&what, FormatError::NestedTooDeep(MAX_INDEX_DEPTH)));
        }
        let bytes = self.checked(chosen, "image manifest")?;
        let media_type = Some(chosen.media_type.as_str());
        match Document::parse(&bytes, media_type).map_err(|error| format(&what, error))? {
            Document::Index(entries) => {
                let image = self.chosen(&entries, platform, depth + 1)?;
                Ok(LocalImage { digest: chosen.digest.clone(), ..image })
            }
            Document::Manifest(manifest) => {
                let config_bytes = self.checked(&manifest.config, "image config")?;
                let config = ImageConfig::parse(&config_bytes).map_err(|error| format("the config", error))?;
                platform.check(&config.platform, via_index)?;
                let config_digest = manifest.config.digest.clone();
                let layers = manifest::layers(manifest, &config, MAX_LAYERS).map_err(|error| format(&what, error))?;
                let image = LocalImage {
                    place: self.place.clone(),
                    digest: chosen.digest.clone(),
                    manifest_digest: chosen.digest.clone(),
                    config_digest,
                    config,
                    layers,
                };
                image.check_sizes()?;
                Ok(image)
            }
        }
    }

    /// A document, checked against its descriptor.
    fn checked(&self, descriptor: &Descriptor, what: &'static str) -> Result<Vec<u8>, LayoutError> {
        let digest = &descriptor.digest;
        if descriptor.size > MAX_DOCUMENT {
            let source = FormatError::TooLarge { what, size: descriptor.size, limit: MAX_DOCUMENT };
            return Err(LayoutError::Format { what: digest.to_string(), source });
        }
        let bytes = self.place.document(&blob_name(digest)).map_err(|error| missing(error, digest))?;
        if bytes.len() as u64 != descriptor.size {
            let (expected, actual) = (descriptor.size, bytes.len() as u64);
            return Err(LayoutError::SizeMismatch { digest: digest.clone(), expected, actual });
        }
        let actual = digest.of_same_kind(&bytes);
        if actual != *digest {
            return Err(LayoutError::DigestMismatch { expected: digest.clone(), actual });
        }
        Ok(bytes)
    }
}

impl LocalImage {
    /// The file a blob is in, and where in it the blob starts.
    pub(crate) fn open_blob(&self, digest: &Digest) -> Result<(File, u64), LayoutError> {
        let found = self.place.open(&blob_name(digest)).map_err(|error| missing(error, digest))?;
        Ok((found.0, found.1))
    }

    fn check_sizes(&self) -> Result<(), LayoutError> {
        for layer in &self.layers {
            let digest = &layer.digest;
            let (_, _, actual) = self.place.open(&blob_name(digest)).map_err(|error| missing(error, digest))?;
            if actual != layer.size {
                return Err(LayoutError::SizeMismatch { digest: digest.clone(), expected: layer.size, actual });
            }
        }
        Ok(())
    }
}

impl Place {
    /// A file of the layout: where it is, at which offset, how long.
    fn open(&self, name: &str) -> Result<(File, u64, u64), LayoutError> {
        let failed = |source| LayoutError::Io { file: name.to_owned(), source };
        match self {
            Place::Folder(folder) => {
                let path = folder.join(name);
                let metadata = path.symlink_metadata().map_err(failed)?;
                if !metadata.is_file() {
                    return Err(failed(io::Error::other("it is not a regular file")));
                }
                Ok((File::open(&path).map_err(failed)?, 0, metadata.len()))
            }
            Place::Tar { path, files } => {
                let &(offset, size) = files.get(name).ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
                Ok((File::open(path).map_err(failed)?, offset, size))
            }
        }
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, LayoutError> {
        let (mut file, offset, size) = self.open(name)?;
        if size > MAX_DOCUMENT {
            let source = FormatError::TooLarge { what: "image manifest", size, limit: MAX_DOCUMENT };
            return Err(LayoutError::Format { what: name.to_owned(), source });
        }
        let failed = |source| LayoutError::Io { file: name.to_owned(), source };
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        let mut bytes = Vec::new();
        file.take(size).read_to_end(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

fn missing(error: LayoutError, digest: &Digest) -> LayoutError {
    match error {
        LayoutError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            LayoutError::Missing(digest.clone())
        }
        other => other,
    }
}
