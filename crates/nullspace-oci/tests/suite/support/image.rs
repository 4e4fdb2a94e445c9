//! Images made of layer archives: blobs, config, manifest.

use std::io::Write as _;

use nullspace_oci::digest::Digest;
use nullspace_oci::manifest::Compression;
use serde_json::{Value, json};

/// A blob with the name the registry knows it by.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) bytes: Vec<u8>,
    pub(crate) media_type: &'static str,
}

#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) layers: Vec<Blob>,
    pub(crate) config: Blob,
    pub(crate) manifest: Blob,
}

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

impl Blob {
    pub(crate) fn new(bytes: Vec<u8>, media_type: &'static str) -> Blob {
        Blob { digest: Digest::sha256(&bytes), bytes, media_type }
    }

    pub(crate) fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest.as_str(), "size": self.bytes.len()})
    }
}

pub(crate) fn compress(tar: &[u8], compression: Compression) -> Blob {
    match compression {
        Compression::None => Blob::new(tar.to_vec(), "application/vnd.oci.image.layer.v1.tar"),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(tar).unwrap();
            Blob::new(encoder.finish().unwrap(), "application/vnd.oci.image.layer.v1.tar+gzip")
        }
        Compression::Zstd => {
            Blob::new(zstd::encode_all(tar, 1).unwrap(), "application/vnd.oci.image.layer.v1.tar+zstd")
        }
    }
}

/// An image for linux/amd64 of these layers, lowest first.
pub(crate) fn image(layers: &[(Vec<u8>, Compression)]) -> Image {
    image_for(layers, "linux", "amd64")
}

pub(crate) fn image_for(layers: &[(Vec<u8>, Compression)], os: &str, architecture: &str) -> Image {
    let diff_ids: Vec<String> = layers.iter().map(|(tar, _)| Digest::sha256(tar).to_string()).collect();
    let layers: Vec<Blob> = layers.iter().map(|(tar, compression)| compress(tar, *compression)).collect();
    let config = json!({
        "os": os, "architecture": architecture,
        "config": {"Env": ["A=b"], "Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = Blob::new(config.to_string().into_bytes(), "application/vnd.oci.image.config.v1+json");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config.descriptor(),
        "layers": layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
    });
    let manifest = Blob::new(manifest.to_string().into_bytes(), MANIFEST);
    Image { layers, config, manifest }
}
