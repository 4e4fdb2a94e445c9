//! Any answer to a manifest request is read or refused, and a platform chosen from it is one that was on offer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nullspace_oci::config::ImageConfig;
use nullspace_oci::manifest::{Document, layers, media_type};
use nullspace_oci::platform::{Choice, Platform};
use nullspace_oci::reference::Reference;

const TYPES: [Option<&str>; 8] = [
    None,
    Some(media_type::OCI_INDEX),
    Some(media_type::OCI_MANIFEST),
    Some(media_type::DOCKER_INDEX),
    Some(media_type::DOCKER_MANIFEST),
    Some(media_type::DOCKER_SCHEMA1),
    Some("application/json; charset=utf-8"),
    Some("text/html"),
];
const LIMIT: usize = 4;

fuzz_target!(|bytes: &[u8]| {
    let Some((&mode, rest)) = bytes.split_first() else { return };
    if mode == 255 {
        return reference(rest);
    }
    match Document::parse(rest, TYPES[usize::from(mode) % TYPES.len()]) {
        Err(error) => assert!(error.to_string().len() < 4096 + rest.len() * 4),
        Ok(Document::Index(entries)) => {
            for platform in [Platform::LinuxAmd64, Platform::LinuxArm64] {
                match platform.choose_descriptor(&entries) {
                    Choice::One(chosen) => assert!(platform.accepts(&chosen.platform) && entries.contains(chosen)),
                    Choice::Unnamed(unnamed, named) => {
                        assert!(entries.iter().all(|entry| !platform.accepts(&entry.platform)));
                        assert!(unnamed.iter().all(|entry| entry.platform.os.is_empty()));
                        assert!(platform.unsupported(named).available.len() <= 50);
                    }
                }
            }
        }
        Ok(Document::Manifest(manifest)) => {
            let count = manifest.layers.len();
            let mut config = ImageConfig::default();
            config.rootfs.diff_ids = manifest.layers.iter().map(|layer| layer.digest.clone()).collect();
            match layers(manifest, &config, LIMIT) {
                Ok(layers) => assert!(layers.len() == count && count <= LIMIT),
                Err(_) => assert!(count > LIMIT),
            }
        }
    }
});

/// Image references are short texts from the same hands; what is read is written and read again as the same.
fn reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(reference) = text.parse::<Reference>() else { return };
    let again: Reference = reference.to_string().parse().expect("it was written by us");
    assert_eq!(again, reference);
    for part in [reference.registry(), reference.repository(), reference.selector()] {
        assert!(
            !part.is_empty() && !part.contains(|c: char| c.is_control() || c == ' ' || c == '?' || c == '#'),
            "{part:?}"
        );
        assert!(!part.split('/').any(|part| part == ".."), "{part:?}");
    }
}
