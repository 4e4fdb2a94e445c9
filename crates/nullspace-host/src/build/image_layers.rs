//! Access of one import to the cache of image layers: which cached blobs a build may use.
//!
//! ```text
//!   registry + repository + digest ── with its proof ──> key ──> data folder (layers/)
//!        Public      the repository gave the blob to a client without credentials: for every tenant that asks this repository
//!        Tenant      the repository gave the blob to this tenant's credentials: for this tenant only
//! ```
//! A digest is only a claim. A hostile registry can serve a manifest that names the layer of somebody's private image, and
//! would have its content built into the attacker's template. So a blob is found only where it came from: in the same
//! repository of the same registry, which has just served this build the manifest. The tenant alone would not do as a key: a
//! stranger's image could then name the private layers of the tenant that tries it, and read them there.

use std::io;
use std::sync::Arc;

use nullspace_data::{ArtifactStore, NewImageLayer, Room};
use nullspace_image_ref::digest::Digest;
use nullspace_oci::import::{CachedLayer, LayerCache, NewLayer};
use nullspace_service::chain;
use nullspace_types::TenantId;

use super::import::{Proof, key};
use crate::disk::Disk;

/// The cache, as one build sees it that imports from one repository.
pub(crate) struct ImageLayers {
    files: ArtifactStore,
    disk: Arc<Disk>,
    registry: String,
    repository: String,
    tenant: TenantId,
    /// Proofs under which a blob is found. It is stored under the first.
    proofs: [Proof; 2],
}

impl ImageLayers {
    /// The access of a tenant's build that asks this repository, with its own credentials or without any.
    pub(crate) fn new(
        files: ArtifactStore,
        disk: Arc<Disk>,
        (registry, repository): (&str, &str),
        tenant: TenantId,
        credentials: bool,
    ) -> ImageLayers {
        let (registry, repository) = (registry.to_owned(), repository.to_owned());
        let public = Proof::Public { registry: registry.clone(), repository: repository.clone() };
        let own = Proof::Tenant(tenant);
        let proofs = if credentials { [own, public] } else { [public, own] };
        ImageLayers { files, disk, registry, repository, tenant, proofs }
    }

    fn keys(&self, digest: &Digest) -> [String; 2] {
        let content = key(&["image layer", &self.registry, &self.repository, digest.as_str()]);
        [self.proofs[0].key(&content), self.proofs[1].key(&content)]
    }
}

impl LayerCache for ImageLayers {
    fn find(&self, digest: &Digest, size: u64) -> Option<CachedLayer> {
        let found = self.keys(digest).iter().find_map(|key| self.files.find_image_layer(key, size))?;
        Some(CachedLayer { file: found.file, hold: Box::new(found.hold) })
    }

    fn remove(&self, digest: &Digest) {
        for key in self.keys(digest) {
            if let Err(error) = self.files.remove_image_layer(&key) {
                tracing::warn!(%digest, error = %chain(&error), "a damaged image layer cannot be removed");
            }
        }
    }

    fn begin(&self, digest: &Digest, size: u64) -> Option<Box<dyn NewLayer>> {
        // A disk that is short of space needs it for the build itself.
        let room = self.disk.room(size).ok()?;
        let [key, _] = self.keys(digest);
        match self.files.new_image_layer(&key, size, self.tenant) {
            Ok(layer) => Some(Box::new(Reserved { layer: layer?, room })),
            Err(error) => {
                tracing::warn!(%digest, error = %chain(&error), "an image layer cannot be added to the cache");
                None
            }
        }
    }
}

/// A blob that is being written, with its space on the disk.
struct Reserved {
    layer: NewImageLayer,
    room: Room,
}

impl NewLayer for Reserved {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.layer.write(bytes)?;
        self.room.used(bytes.len() as u64);
        Ok(())
    }

    fn store(self: Box<Self>) -> io::Result<()> {
        self.layer.store().map_err(|error| io::Error::other(chain(&error)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    const PRIVATE: (&str, &str) = ("r.example", "a/private");

    struct Cache {
        _dir: tempfile::TempDir,
        files: ArtifactStore,
        disk: Arc<Disk>,
    }

    impl Cache {
        fn new() -> Cache {
            let dir = tempfile::tempdir().unwrap();
            let files = ArtifactStore::open(dir.path()).unwrap();
            let disk = Arc::new(Disk::new(files.clone(), Some(0)));
            Cache { _dir: dir, files, disk }
        }

        fn of(&self, repository: (&str, &str), tenant: TenantId, credentials: bool) -> ImageLayers {
            ImageLayers::new(self.files.clone(), Arc::clone(&self.disk), repository, tenant, credentials)
        }
    }

    const SECRET: &[u8] = b"what is only in the private image";

    fn store(layers: &ImageLayers) {
        let mut new = layers.begin(&Digest::sha256(SECRET), SECRET.len() as u64).unwrap();
        new.write(SECRET).unwrap();
        new.store().unwrap();
    }

    fn finds(layers: &ImageLayers) -> bool {
        let Some(mut found) = layers.find(&Digest::sha256(SECRET), SECRET.len() as u64) else { return false };
        let mut bytes = Vec::new();
        found.file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, SECRET);
        true
    }

    #[test]
    fn a_manifest_that_names_a_private_layer_does_not_get_it() {
        let (cache, a, b) = (Cache::new(), TenantId::new(), TenantId::new());
        let owner = cache.of(PRIVATE, a, true);
        store(&owner);
        assert!(finds(&owner));
        for (repository, tenant, credentials) in [
            // The attacker's registry and repositories, whatever they are called.
            (("evil.example", "x"), b, false),
            (("evil.example", "x"), b, true),
            (("evil.example", "a/private"), b, false),
            (("r.example", "b/own"), b, true),
            (("r.example/a", "private"), b, false),
            // The repository itself, which the attacker's credentials may or may not open: it has to say so itself.
            (PRIVATE, b, false),
            (PRIVATE, b, true),
            // The owner, who was led to try the attacker's image.
            (("evil.example", "x"), a, false),
            (("evil.example", "x"), a, true),
            (("r.example", "b/own"), a, true),
        ] {
            let asking = cache.of(repository, tenant, credentials);
            assert!(!finds(&asking), "{repository:?} {credentials}");
        }
        // What the attacker stores and removes under its own names changes nothing for the owner.
        let evil = cache.of(("evil.example", "x"), b, false);
        store(&evil);
        evil.remove(&Digest::sha256(SECRET));
        assert!(finds(&owner) && !finds(&evil));
    }

    #[test]
    fn what_a_repository_gives_to_everybody_is_found_by_every_tenant_that_asks_it() {
        let (cache, a, b) = (Cache::new(), TenantId::new(), TenantId::new());
        store(&cache.of(("r.example", "open"), a, false));
        assert!(finds(&cache.of(("r.example", "open"), b, false)) && finds(&cache.of(("r.example", "open"), b, true)));
        assert!(!finds(&cache.of(("r.example", "other"), a, false)));
        // A repository that was opened since: this tenant had the layer from it before.
        store(&cache.of(PRIVATE, a, true));
        assert!(finds(&cache.of(PRIVATE, a, false)));
    }

    #[test]
    fn a_disk_that_is_short_of_space_stores_no_layers() {
        let cache = Cache::new();
        let full = Arc::new(Disk::new(cache.files.clone(), Some(u64::MAX)));
        let layers = ImageLayers::new(cache.files.clone(), full, PRIVATE, TenantId::new(), true);
        assert!(layers.begin(&Digest::sha256(SECRET), SECRET.len() as u64).is_none());
        cache.files.set_image_layer_limit(0).unwrap();
        assert!(cache.of(PRIVATE, TenantId::new(), true).begin(&Digest::sha256(b""), 0).is_none());
    }
}
