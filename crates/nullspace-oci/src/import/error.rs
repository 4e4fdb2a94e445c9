//! Errors of an import, with the layer they belong to.

use crate::digest::Digest;
use crate::merge::LayerError;
use crate::registry::RegistryError;
use crate::stream::StreamError;
use crate::tar::TarError;

/// Why an import failed.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The registry, the way to it, or a blob that is not what its digest says.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A layer's bytes cannot be decoded or are not what the config says.
    #[error("layer {layer}: {source}")]
    Stream {
        /// The layer's blob.
        layer: Digest,
        /// Why.
        source: StreamError,
    },
    /// A layer's content cannot be used.
    #[error("layer {layer}: {source}")]
    Layer {
        /// The layer's blob.
        layer: Digest,
        /// Why.
        source: LayerError,
    },
    /// Something on this machine failed: a thread, a temporary file.
    #[error("import the image: {0}")]
    Io(#[source] std::io::Error),
    /// The import was cancelled.
    #[error("the import was cancelled")]
    Cancelled,
}

impl ImportError {
    /// Whether the same import may succeed later without anyone changing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            ImportError::Registry(error) | ImportError::Stream { source: StreamError::Registry(error), .. } => {
                error.is_retryable()
            }
            ImportError::Io(_) => true,
            ImportError::Layer { source: LayerError::Sink { .. }, .. } => true,
            ImportError::Stream { .. } | ImportError::Layer { .. } | ImportError::Cancelled => false,
        }
    }

    /// Sorts a layer's error: what happened to the stream comes up through the tar reader as an I/O error.
    pub(super) fn from_layer(layer: &Digest, error: LayerError) -> ImportError {
        match error {
            LayerError::Tar(TarError::Read(io)) => ImportError::from_io(layer, io),
            source => ImportError::Layer { layer: layer.clone(), source },
        }
    }

    pub(super) fn from_io(layer: &Digest, error: std::io::Error) -> ImportError {
        match StreamError::find(error) {
            Ok(StreamError::Registry(error)) => ImportError::Registry(error),
            Ok(StreamError::Cancelled) => ImportError::Cancelled,
            Ok(source) => ImportError::Stream { layer: layer.clone(), source },
            Err(io) => ImportError::Io(io),
        }
    }

    /// Whether the cause may be that the blob itself was not the right one.
    pub(super) fn is_about_content(&self) -> bool {
        match self {
            ImportError::Stream { .. } => true,
            ImportError::Layer { source, .. } => !matches!(source, LayerError::Sink { .. }),
            ImportError::Registry(_) | ImportError::Io(_) | ImportError::Cancelled => false,
        }
    }
}
