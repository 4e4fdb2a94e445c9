//! Kind and metadata of a tree's nodes.

/// Most names of one file (`EXT4_LINK_MAX`).
pub(crate) const MAX_LINKS: u32 = 65000;

/// A point in time. A time outside ext4's range becomes the nearest one in it, as in the kernel. The range is 1901-12-13 to
/// 2310-04-04; e2fsck reports later times as errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timestamp {
    /// Seconds since 1970, negative before.
    pub seconds: i64,
    /// Nanoseconds after that. More than 999,999,999 count as 999,999,999.
    pub nanoseconds: u32,
}

/// Owner, permissions, time and extended attributes of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Permissions with set-user-id, set-group-id and sticky bit: the low 12 bits; others are ignored.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change of the contents. The access time is the same.
    pub mtime: Timestamp,
    /// Extended attributes: full names (`security.capability`), and values as `getxattr` returns them.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Kind of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
}
