//! Manifests and indexes, of OCI and of Docker (schema 2).
//!
//! Docker's schema 1 signs a JSON of V1 images and has no config blob; registries stopped serving it, and so it is only
//! recognised, to say so. What a document *is* follows from its own `mediaType` if it has one, else from the
//! `Content-Type` it came with, else from its fields (OCI makes `mediaType` optional).

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::config::ImageConfig;
use crate::digest::Digest;
pub use crate::format::FormatError;
use crate::json;
use crate::offered::OfferedPlatform;

/// OCI and Docker media types, as the image-spec and Docker's distribution define them.
pub mod media_type {
    /// OCI image index.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// OCI image manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// Docker's index.
    pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker's manifest, schema 2.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker's manifest, schema 1.
    pub const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+json";
    /// Docker's manifest, schema 1, signed.
    pub const DOCKER_SCHEMA1_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    /// OCI image config.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// Docker's image config.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
}

/// Media types that configs of images were pushed with, beside their own: Docker 1.10 and registries of 2016 lost the type
/// (docker/distribution issue 1621), and every client since takes these for images.
const MISTAKEN_CONFIGS: [&str; 4] = ["", "application/octet-stream", "application/json", "text/html"];

/// Largest manifest, index or config taken, in bytes (the distribution-spec lets registries refuse manifests above 4 MiB).
pub const MAX_DOCUMENT: u64 = 4 << 20;

/// Indexes that name indexes: one level is seen in the wild, this many are followed.
pub const MAX_INDEX_DEPTH: usize = 3;

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// A plain tar.
    None,
    /// gzip, one or more members.
    Gzip,
    /// zstd, one or more frames.
    Zstd,
}

impl std::fmt::Display for Compression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        })
    }
}

impl Compression {
    /// The compression a layer media type stands for; `None` for anything that is not a layer.
    pub fn of_media_type(media_type: &str) -> Option<Compression> {
        Some(match media_type {
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar" => Compression::None,
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Compression::Gzip,
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Compression::Zstd,
            _ => return None,
        })
    }
}

/// A pointer to a blob or manifest: what it is, which, how long (image-spec, `descriptor.md`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Descriptor {
    /// Media type; empty if missing.
    #[serde(rename = "mediaType", default, deserialize_with = "json::null_default")]
    pub media_type: String,
    /// Digest of the content.
    pub digest: Digest,
    /// Length of the content in bytes.
    pub size: u64,
    /// In an index: what the image is for.
    #[serde(default, deserialize_with = "json::null_default")]
    pub platform: OfferedPlatform,
    /// Annotations.
    #[serde(default, deserialize_with = "json::string_map")]
    pub annotations: BTreeMap<String, String>,
}

/// An image manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The image config.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<LayerDescriptor>,
}

/// A layer as the manifest has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerDescriptor {
    /// Digest of the blob as it is in the registry.
    pub digest: Digest,
    /// Length of that blob in bytes.
    pub size: u64,
    /// The media type as written.
    pub media_type: String,
    /// The compression it stands for.
    pub compression: Compression,
}

/// A layer, ready to be fetched and checked: from the manifest and the config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Digest of the blob.
    pub digest: Digest,
    /// Length of the blob in bytes.
    pub size: u64,
    /// Media type as the manifest has it.
    pub media_type: String,
    /// How the blob is compressed.
    pub compression: Compression,
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
}

/// The layers of an image, lowest first: the manifest's blobs with the config's diff ids.
pub fn layers(manifest: Manifest, config: &ImageConfig, limit: usize) -> Result<Vec<Layer>, FormatError> {
    let (layers, diff_ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
    if layers > limit {
        return Err(FormatError::TooManyLayers { layers, limit });
    }
    if layers != diff_ids {
        return Err(FormatError::LayerCount { layers, diff_ids });
    }
    let pairs = manifest.layers.into_iter().zip(config.rootfs.diff_ids.iter().cloned());
    let layers = pairs.map(|(layer, diff_id)| Layer {
        digest: layer.digest,
        size: layer.size,
        media_type: layer.media_type,
        compression: layer.compression,
        diff_id,
    });
    Ok(layers.collect())
}

/// A manifest, or an index of manifests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several images, for several platforms.
    Index(Vec<Descriptor>),
}

/// All fields either kind of document may have; only the presence of some tells them apart.
#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "schemaVersion", default, deserialize_with = "json::null_default")]
    schema_version: u64,
    #[serde(rename = "mediaType", default, deserialize_with = "json::null_default")]
    media_type: String,
    #[serde(rename = "artifactType", default, deserialize_with = "json::null_default")]
    artifact_type: String,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
}

impl Document {
    /// Parses what a registry answered to a manifest request. `content_type` is the answer's header, if any.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Document, FormatError> {
        let malformed = |reason: String| FormatError::Json { what: "image manifest", reason };
        // "application/…; charset=utf-8" is the same type.
        let content_type = content_type.and_then(|text| text.split(';').next()).map_or("", str::trim);
        if matches!(content_type, media_type::DOCKER_SCHEMA1 | media_type::DOCKER_SCHEMA1_SIGNED) {
            return Err(FormatError::Schema1);
        }
        let raw: Raw = json::parse(bytes).map_err(|source| malformed(source.to_string()))?;
        if raw.schema_version == 1 {
            return Err(FormatError::Schema1);
        }
        let declared = if raw.media_type.is_empty() { content_type } else { raw.media_type.as_str() };
        match declared {
            media_type::OCI_INDEX | media_type::DOCKER_INDEX => {
                let manifests = raw.manifests.ok_or_else(|| malformed("an index without manifests".to_owned()))?;
                Ok(Document::Index(manifests))
            }
            media_type::OCI_MANIFEST | media_type::DOCKER_MANIFEST => manifest(raw).map(Document::Manifest),
            media_type::DOCKER_SCHEMA1 | media_type::DOCKER_SCHEMA1_SIGNED => Err(FormatError::Schema1),
            // Registries that lost the type answer one of these; the fields decide. Both kinds in one document would be
            // ambiguous (CVE-2021-41190), so that is refused.
            "" | "application/json" | "application/octet-stream" | "text/plain" => {
                match (&raw.manifests, &raw.layers) {
                    (Some(_), Some(_)) => Err(malformed("it is both an index and a manifest".to_owned())),
                    (Some(_), None) => Ok(Document::Index(raw.manifests.unwrap_or_default())),
                    _ => manifest(raw).map(Document::Manifest),
                }
            }
            other => Err(FormatError::UnsupportedMediaType { media_type: other.chars().take(200).collect() }),
        }
    }
}

fn manifest(raw: Raw) -> Result<Manifest, FormatError> {
    let malformed = |reason: &str| FormatError::Json { what: "image manifest", reason: reason.to_owned() };
    if raw.manifests.is_some() {
        return Err(malformed("it is both an index and a manifest"));
    }
    let config = raw.config.ok_or_else(|| malformed("it names no config"))?;
    // An artifact (a signature, a chart) has the shape of a manifest; its config's type tells, or its own.
    let own = matches!(config.media_type.as_str(), media_type::OCI_CONFIG | media_type::DOCKER_CONFIG);
    let mistaken = raw.artifact_type.is_empty() && MISTAKEN_CONFIGS.contains(&config.media_type.as_str());
    if !own && !mistaken {
        let media_type = if raw.artifact_type.is_empty() { config.media_type } else { raw.artifact_type };
        return Err(FormatError::UnsupportedMediaType { media_type: media_type.chars().take(200).collect() });
    }
    let layers = raw
        .layers
        .ok_or_else(|| malformed("it has no layers"))?
        .into_iter()
        .map(|layer| match Compression::of_media_type(&layer.media_type) {
            Some(compression) => Ok(LayerDescriptor {
                digest: layer.digest,
                size: layer.size,
                media_type: layer.media_type,
                compression,
            }),
            None => Err(FormatError::UnsupportedLayer {
                digest: layer.digest,
                media_type: layer.media_type.chars().take(200).collect(),
            }),
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Manifest { config, layers })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn manifest_json(media_type: &str, config_type: &str, layer_type: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,{media_type}"config":{{"mediaType":"{config_type}","digest":"{HEX}","size":2}},
            "layers":[{{"mediaType":"{layer_type}","digest":"{HEX}","size":7,"urls":null,"annotations":{{}}}}]}}"#
        )
    }

    #[test]
    fn oci_and_docker_manifests_parse_with_and_without_a_media_type() {
        for (own, header) in [
            (r#""mediaType":"application/vnd.oci.image.manifest.v1+json","#, None),
            ("", Some("application/vnd.docker.distribution.manifest.v2+json; charset=utf-8")),
            ("", Some("application/json")),
            ("", None),
        ] {
            let json = manifest_json(own, media_type::DOCKER_CONFIG, "application/vnd.oci.image.layer.v1.tar+zstd");
            let Document::Manifest(manifest) = Document::parse(json.as_bytes(), header).unwrap() else { panic!() };
            assert_eq!(manifest.layers[0].compression, Compression::Zstd);
            assert_eq!(manifest.layers[0].size, 7);
        }
    }

    #[test]
    fn configs_of_images_are_known_under_the_types_that_they_were_given_by_mistake() {
        const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
        for taken in ["", "application/octet-stream", "application/json", "text/html"] {
            let json = manifest_json("", taken, LAYER);
            assert!(matches!(Document::parse(json.as_bytes(), None), Ok(Document::Manifest(_))), "{taken}");
            let artifact = manifest_json(r#""artifactType":"application/x","#, taken, LAYER);
            let refused = Document::parse(artifact.as_bytes(), None);
            assert!(matches!(refused, Err(FormatError::UnsupportedMediaType { .. })), "{taken}");
        }
        for refused in ["application/vnd.docker.plugin.v1+json", "application/vnd.oci.empty.v1+json"] {
            let json = manifest_json("", refused, LAYER);
            assert!(Document::parse(json.as_bytes(), None).is_err(), "{refused}");
        }
    }

    #[test]
    fn index_parses_with_platforms() {
        let json = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[{{"digest":"{HEX}","size":1,"mediaType":"x",
            "platform":{{"os":"linux","architecture":"arm64","variant":"v8"}}}},{{"digest":"{HEX}","size":1,"platform":null}}]}}"#,
            media_type::DOCKER_INDEX
        );
        let Document::Index(entries) = Document::parse(json.as_bytes(), None).unwrap() else { panic!() };
        assert_eq!(entries[0].platform.to_string(), "linux/arm64/v8");
        assert_eq!(entries[1].platform, OfferedPlatform::default());
    }

    #[test]
    fn other_documents_are_refused_by_kind() {
        let parse = |json: &str, header| Document::parse(json.as_bytes(), header).unwrap_err();
        assert_eq!(parse(r#"{"schemaVersion":1,"fsLayers":[]}"#, None), FormatError::Schema1);
        assert_eq!(parse("{}", Some(media_type::DOCKER_SCHEMA1_SIGNED)), FormatError::Schema1);
        let helm = manifest_json("", "application/vnd.cncf.helm.config.v1+json", "application/tar+gzip");
        assert!(matches!(parse(&helm, None), FormatError::UnsupportedMediaType { .. }));
        let layer = manifest_json("", media_type::OCI_CONFIG, "application/x-lzma");
        assert!(matches!(parse(&layer, None), FormatError::UnsupportedLayer { .. }));
        assert!(matches!(parse("{}", Some("text/html")), FormatError::UnsupportedMediaType { .. }));
        assert!(matches!(parse("{}", None), FormatError::Json { .. }));
        assert!(matches!(parse("nonsense", None), FormatError::Json { .. }));
        let both = format!(r#"{{"manifests":[],"layers":[],"config":{{"digest":"{HEX}","size":1}}}}"#);
        assert!(matches!(parse(&both, None), FormatError::Json { .. }));
        let negative =
            manifest_json("", media_type::OCI_CONFIG, "application/vnd.oci.image.layer.v1.tar").replace(":7", ":-7");
        assert!(matches!(parse(&negative, None), FormatError::Json { .. }));
    }
}
