//! What a host is, what it has, and what of it is in use.

/// Memory and processors of machines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Memory of all machines together, MiB: guests' and VMMs'.
    pub memory_mib: u64,
    /// Virtual CPUs of all machines together.
    pub vcpus: u64,
}

/// What a host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostInfo {
    /// The VMM that it runs: `firecracker` or `qemu`.
    pub vmm: &'static str,
    /// The VMM's version.
    pub version: String,
    /// `kvm`, or the software emulation.
    pub accelerator: String,
    /// What keeps a machine apart from its host, for people.
    pub walls: String,
}

/// What a host stores, and the room on its disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostUsage {
    /// The chunk store.
    pub images: ImageStoreUsage,
    /// Root images that are there as raw files.
    pub raw: RawImageUsage,
    /// Free on the disk under the data folder, bytes.
    pub disk_free: u64,
    /// With less than so much free nothing new begins, bytes.
    pub disk_reserve: u64,
}

/// What the chunk store holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImageStoreUsage {
    /// Different chunks.
    pub chunks: u64,
    /// The packs that hold them, bytes.
    pub pack_bytes: u64,
    /// The chunks before compression, bytes.
    pub plain_bytes: u64,
}

/// The cache of raw root images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawImageUsage {
    /// Files.
    pub files: u64,
    /// What they take on the disk, bytes.
    pub bytes: u64,
    /// Files made from chunks since the start.
    pub written_back: u64,
}
