//! Information about a host: its capacity, storage, and their use.

/// Memory and processors of machines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Memory of all machines together, MiB: guests' and VMMs'.
    pub memory_mib: u64,
    /// Virtual CPUs of all machines together.
    pub vcpus: u64,
}

/// Information about a host's VMM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostInfo {
    /// The VMM: `firecracker` or `qemu`.
    pub vmm: &'static str,
    /// The VMM's version.
    pub version: String,
    /// `kvm`, or the software emulation.
    pub accelerator: String,
    /// The walls between a machine and its host, as text.
    pub walls: String,
}

/// The use of a host's storage, and the free space on its disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostUsage {
    /// The chunk store.
    pub images: ImageStoreUsage,
    /// The cache of raw root images.
    pub raw: RawImageUsage,
    /// The cache of image layers.
    pub layers: LayerCacheUsage,
    /// The object store; zeros without one.
    pub objects: ObjectStoreUsage,
    /// Machines that build Dockerfiles, those that start among them.
    pub builder_machines: u64,
    /// Disks of such machines, also of those that have ended.
    pub builder_disks: u64,
    /// Size of these disks on the host's, bytes, without holes.
    pub builder_disk_bytes: u64,
    /// Free space on the disk under the data folder, bytes.
    pub disk_free: u64,
    /// Free space below which no new work begins, bytes.
    pub disk_reserve: u64,
}

/// What was moved to and from the object store since the start, and what the data folder keeps of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ObjectStoreUsage {
    /// Objects stored.
    pub uploads: u64,
    /// Their bytes.
    pub uploaded_bytes: u64,
    /// Reads of objects and of parts of them.
    pub downloads: u64,
    /// Their bytes.
    pub downloaded_bytes: u64,
    /// Calls that failed after all their tries.
    pub failures: u64,
    /// Size of the packs in the store, bytes.
    pub pack_bytes: u64,
    /// Size of the packs that are not uploaded yet, bytes.
    pub missing_bytes: u64,
    /// Size of what the data folder keeps as a cache, bytes.
    pub cache_bytes: u64,
}

/// The object store of a host, asked now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectStoreState {
    /// Where it is: bucket, prefix and endpoint.
    pub location: String,
    /// Why it cannot be used; `None` when it can.
    pub failure: Option<String>,
}

/// The contents of the chunk store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImageStoreUsage {
    /// Different chunks.
    pub chunks: u64,
    /// Size of the packs, bytes.
    pub pack_bytes: u64,
    /// Size of the chunks before compression, bytes.
    pub plain_bytes: u64,
}

/// The cache of raw root images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawImageUsage {
    /// Files.
    pub files: u64,
    /// Space on the disk, bytes.
    pub bytes: u64,
    /// Files made from chunks since the start.
    pub written_back: u64,
}

/// The cache of image layers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerCacheUsage {
    /// Layers.
    pub files: u64,
    /// Their size, bytes.
    pub bytes: u64,
    /// Layers that imports found in it since the start.
    pub hits: u64,
}
