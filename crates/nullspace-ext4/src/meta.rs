//! What a node of a tree is, and who may do what with it.

/// Names that one file can have (`EXT4_LINK_MAX`).
pub(crate) const MAX_LINKS: u32 = 65000;

/// A point in time. What ext4 cannot store (before 1901-12-13), or not without e2fsck calling it an error (from
/// 2310-04-04 on), becomes the nearest it can, as in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timestamp {
    /// Seconds since 1970, negative before.
    pub seconds: i64,
    /// Nanoseconds after that; more than 999,999,999 count as that.
    pub nanoseconds: u32,
}

/// Who may do what with a file, and when it was changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Permissions with set-user-id, set-group-id and sticky bit: the low 12 bits; others are ignored.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When the contents changed; access gets the same time.
    pub mtime: Timestamp,
    /// Extended attributes: full names (`security.capability`), values as `getxattr` gives them.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
}
