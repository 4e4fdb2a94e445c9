//! Errors of a tree, an image or the disk below it.

use std::io;

use crate::meta::MAX_LINKS;

/// Errors of writing, reading or growing an image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The contents do not fit into the size asked for. Retrying is pointless without a larger size.
    #[error("the contents do not fit: the image has {size_bytes} bytes and needs at least {needed_bytes}")]
    TooSmall {
        /// The size asked for.
        size_bytes: u64,
        /// A size that suffices for all that was seen so far. At [`crate::ImageWriter::finish`] that is everything;
        /// while contents are streamed, what is still to come adds to it.
        needed_bytes: u64,
    },
    /// The size asked for is beyond what this crate addresses.
    #[error("an image of {size_bytes} bytes is too large; the limit is {limit_bytes}")]
    TooLarge {
        /// The size asked for.
        size_bytes: u64,
        /// The largest size there is.
        limit_bytes: u64,
    },
    /// One file's contents are longer than ext4 can address.
    #[error("a file is larger than {limit_bytes} bytes, the most a file can have")]
    FileTooLarge {
        /// The most bytes a file can have.
        limit_bytes: u64,
    },
    /// The volume label does not fit its 16 bytes or holds a NUL.
    #[error("the volume label must have at most 16 bytes and no NUL")]
    BadLabel,
    /// A name cannot stand in a directory.
    #[error("the name {name:?} {fault}")]
    BadName {
        /// The name, readable.
        name: String,
        /// The fault.
        fault: NameFault,
    },
    /// The directory has an entry of that name already.
    #[error("the name {name:?} is taken in its directory")]
    NameTaken {
        /// The name, readable.
        name: String,
    },
    /// A parent that is no directory (any more).
    #[error("the parent of {name:?} is not a directory")]
    NotADirectory {
        /// The name that was to be put there.
        name: String,
    },
    /// A hard link to a directory, or to a node that was removed.
    #[error("{name:?} cannot be a hard link to that node; only a file or a symbolic link can have more than one name")]
    BadLinkTarget {
        /// The name of the link.
        name: String,
    },
    /// A file with more names than ext4 can count.
    #[error("{name:?} would be link number {limit} or more of one file", limit = MAX_LINKS + 1)]
    TooManyLinks {
        /// The name that was one too many.
        name: String,
    },
    /// A symbolic link's target is empty, longer than 4095 bytes or holds a NUL.
    #[error("the target of the symbolic link {name:?} has {length} bytes; allowed are 1 to 4095 without a NUL")]
    BadSymlink {
        /// The name of the link.
        name: String,
        /// The length of its target.
        length: usize,
    },
    /// An extended attribute cannot be stored.
    #[error("the extended attribute {attribute:?} {fault}")]
    BadXattr {
        /// The attribute's name, readable.
        attribute: String,
        /// The fault.
        fault: XattrFault,
    },
    /// More names or nodes than can be counted.
    #[error("the tree has too many entries")]
    TooManyEntries,
    /// One directory holds more names than a two-level index can find.
    #[error("a directory has too many entries ({entries})")]
    DirectoryTooLarge {
        /// How many it has.
        entries: usize,
    },
    /// File data that does not belong to this image, or is used twice. A bug of the caller.
    #[error("file data of another image was put into the tree")]
    ForeignFileData,
    /// What the file holds is not a filesystem this crate can work on.
    #[error("not a usable ext4 image: {reason}")]
    BadImage {
        /// The fault.
        reason: String,
    },
    /// An image can be made larger, not smaller.
    #[error("the image has {current_bytes} bytes and cannot shrink to {size_bytes}")]
    CannotShrink {
        /// The size asked for.
        size_bytes: u64,
        /// The size it has.
        current_bytes: u64,
    },
    /// There is no room kept for so many group descriptors.
    #[error("the image cannot grow to {size_bytes} bytes; it was made to grow up to {limit_bytes}")]
    CannotGrow {
        /// The size asked for.
        size_bytes: u64,
        /// How large it can become.
        limit_bytes: u64,
    },
    /// The file below failed.
    #[error("{action}: {source}")]
    Io {
        /// The operation, in the present tense.
        action: &'static str,
        /// The error of the system.
        source: io::Error,
    },
}

/// A fault of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameFault {
    /// It has no bytes.
    #[error("is empty")]
    Empty,
    /// It has more than 255 bytes.
    #[error("is longer than 255 bytes")]
    TooLong,
    /// It is `.` or `..`, which every directory has by itself.
    #[error("is reserved")]
    Dots,
    /// It holds a slash or a NUL.
    #[error("holds a slash or a NUL byte")]
    ForbiddenByte,
    /// It is `lost+found` in the root, where the filesystem needs a directory.
    #[error("must be a directory in the root of the filesystem")]
    LostAndFound,
}

/// A fault of an extended attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum XattrFault {
    /// Its name does not start with a namespace that ext4 stores.
    #[error("is in no namespace that ext4 stores (user, trusted, security, system.posix_acl_*)")]
    Namespace,
    /// Its name is empty behind the namespace, longer than 255 bytes or holds a NUL.
    #[error("has an empty or overlong name, or a NUL in it")]
    Name,
    /// The file has another attribute of that name.
    #[error("is given twice")]
    Duplicate,
    /// Its value is no access control list in the kernel's format.
    #[error("is not a valid access control list")]
    Acl,
    /// A default access control list on something that is not a directory.
    #[error("is only possible on a directory")]
    DefaultAclOnFile,
    /// Its value is longer than Linux gives out.
    #[error("has more than 65536 bytes, the most that Linux gives out")]
    TooLarge,
    /// The names of all attributes of the file need more room than the inode and one block have.
    #[error("is one too many: the names of all attributes of a file together may have about 4000 bytes")]
    TooMany,
    /// The large values of all files together are more than an image of this crate has.
    #[error("is too much: attributes of more than a few KiB may have 64 MiB in a whole image")]
    TooMuch,
}

/// Names in errors: never more of a hostile name than a log line can bear.
pub(crate) fn readable(name: &[u8]) -> String {
    let shown = name.get(..256).unwrap_or(name);
    String::from_utf8_lossy(shown).into_owned()
}

/// Gives an [`io::Error`] its place.
pub(crate) fn io(action: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { action, source }
}
