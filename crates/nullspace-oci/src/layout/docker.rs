//! What `docker save` wrote before it wrote layouts (Docker 24 and older), in a tar:
//!
//! ```text
//!  manifest.json   [{"Config": "<hex>.json", "RepoTags": [...], "Layers": ["<id>/layer.tar", ...]}]
//! ```
//! Layers are plain tars without a name of their own; each is known by its diff id, which the config has, and is checked
//! against it when it is read. A layer that stands twice in an image is a symlink the second time.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;

use crate::config::ImageConfig;
use crate::digest::{Algorithm, Digest};
use crate::json;
use crate::manifest::{Compression, FormatError, Layer};
use crate::platform::Platform;

use super::{LayoutError, LocalImage, MAX_LAYERS, Place, blob_name};

pub(super) const MANIFEST: &str = "manifest.json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

#[derive(Deserialize)]
struct Saved {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "RepoTags", default, deserialize_with = "json::null_default")]
    names: Vec<String>,
    #[serde(rename = "Layers", default, deserialize_with = "json::null_default")]
    layers: Vec<String>,
}

/// The image of this name, or the only one. Its `digest` and `manifest_digest` are the config's, since there is no
/// manifest that has one.
pub(super) fn resolve(
    path: &Path,
    files: &HashMap<String, (u64, u64)>,
    platform: Platform,
    name: Option<&str>,
) -> Result<LocalImage, LayoutError> {
    let place = Place::Tar { path: path.to_owned(), files: files.clone() };
    let format = |what: &str, source| LayoutError::Format { what: what.to_owned(), source };
    let malformed = |source: serde_json::Error| {
        format(MANIFEST, FormatError::Json { what: "image manifest", reason: source.to_string() })
    };
    let mut saved: Vec<Saved> = json::parse(&place.document(MANIFEST)?).map_err(malformed)?;
    if let Some(name) = name {
        saved.retain(|image| image.names.iter().any(|found| found == name));
    }
    let saved = match (saved.as_slice(), name) {
        ([only], _) => only,
        (_, Some(name)) => return Err(LayoutError::NoSuchName(name.to_owned())),
        _ => return Err(LayoutError::NotALayout("its manifest.json does not name one image")),
    };
    let bytes = place.document(&saved.config)?;
    let config_digest = Digest::sha256(&bytes);
    if let Ok(expected) = format!("sha256:{}", saved.config.trim_end_matches(".json")).parse::<Digest>()
        && expected != config_digest
    {
        return Err(LayoutError::DigestMismatch { expected, actual: config_digest });
    }
    let config = ImageConfig::parse(&bytes).map_err(|error| format("the config", error))?;
    platform.check(&config.platform, false)?;
    let diff_ids = &config.rootfs.diff_ids;
    if saved.layers.len() > MAX_LAYERS {
        let source = FormatError::TooManyLayers { layers: saved.layers.len(), limit: MAX_LAYERS };
        return Err(format(MANIFEST, source));
    }
    if saved.layers.len() != diff_ids.len() {
        let source = FormatError::LayerCount { layers: saved.layers.len(), diff_ids: diff_ids.len() };
        return Err(format(MANIFEST, source));
    }
    // From here on a layer is found as in a layout: by its digest, which is its diff id.
    let mut found = HashMap::new();
    for (layer, diff_id) in saved.layers.iter().zip(diff_ids) {
        if let Some(at) = files.get(layer) {
            found.insert(blob_name(diff_id), *at);
        }
    }
    let layers = diff_ids.iter().map(|diff_id| {
        let (_, size) = found.get(&blob_name(diff_id)).ok_or_else(|| LayoutError::Missing(diff_id.clone()))?;
        if diff_id.algorithm() != Algorithm::Sha256 {
            return Err(LayoutError::NotALayout("its layers are not known by SHA-256"));
        }
        Ok(Layer {
            digest: diff_id.clone(),
            size: *size,
            media_type: LAYER.to_owned(),
            compression: Compression::None,
            diff_id: diff_id.clone(),
        })
    });
    let layers = layers.collect::<Result<Vec<_>, _>>()?;
    Ok(LocalImage {
        place: Place::Tar { path: path.to_owned(), files: found },
        digest: config_digest.clone(),
        manifest_digest: config_digest.clone(),
        config_digest,
        config,
        layers,
    })
}
