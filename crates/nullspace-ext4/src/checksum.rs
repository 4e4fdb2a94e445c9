//! The crc32c checksums of the `metadata_csum` feature.
//!
//! ext4 uses crc32c without the usual final inversion and starts most sums from one made of the filesystem's UUID, so
//! that a block of another filesystem never passes for one of this.

/// A running ext4 checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checksum(u32);

impl Checksum {
    /// The sum of nothing.
    pub(crate) const EMPTY: Checksum = Checksum(!0);

    /// Where every structure of the filesystem with this UUID starts.
    pub(crate) fn of_filesystem(uuid: &[u8; 16]) -> Checksum {
        Checksum::EMPTY.with(uuid)
    }

    /// Where everything that belongs to an inode starts: its directory blocks, its extent blocks, itself.
    pub(crate) fn of_inode(self, inode: u32, generation: u32) -> Checksum {
        self.with(&inode.to_le_bytes()).with(&generation.to_le_bytes())
    }

    /// The sum with `bytes` added.
    pub(crate) fn with(self, bytes: &[u8]) -> Checksum {
        Checksum(!crc32c::crc32c_append(!self.0, bytes))
    }

    /// The number as it is stored.
    pub(crate) fn value(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_match_the_published_check_value_before_its_final_inversion() {
        assert_eq!(!Checksum::EMPTY.with(b"123456789").value(), 0xe306_9283);
    }

    #[test]
    fn sums_can_be_taken_in_pieces() {
        let whole = Checksum::EMPTY.with(b"block group descriptor");
        assert_eq!(Checksum::EMPTY.with(b"block group").with(b" descriptor"), whole);
    }
}
