//! Access control lists: from the kernel's extended-attribute format to the shorter one that ext4 stores.
//!
//! ```text
//!  attribute value (linux/posix_acl_xattr.h)      on disk (fs/ext4/acl.h)
//!  u32 version = 2                                u32 version = 1
//!  { u16 tag, u16 perm, u32 id } ...              { u16 tag, u16 perm, [u32 id: only for USER and GROUP] } ...
//! ```

use crate::le::{get_u16, get_u32};

const ATTRIBUTE_VERSION: u32 = 2;
const DISK_VERSION: u32 = 1;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// The stored form of an access control list, or none if `value` is not one that the kernel would have accepted: the
/// entries in their order, none missing.
pub(crate) fn to_disk(value: &[u8]) -> Option<Vec<u8>> {
    let (header, entries) = value.split_at_checked(4)?;
    if get_u32(header, 0) != ATTRIBUTE_VERSION || entries.len() % 8 != 0 {
        return None;
    }
    let mut stored = DISK_VERSION.to_le_bytes().to_vec();
    let mut state = USER_OBJ;
    let mut named = false;
    for entry in entries.chunks_exact(8) {
        let (tag, permissions) = (get_u16(entry, 0), get_u16(entry, 2));
        // As posix_acl_valid() in the kernel: what may come now, and what may come after it.
        state = match (tag, state) {
            (USER_OBJ, USER_OBJ) => USER,
            (USER, USER) => USER,
            (GROUP_OBJ, USER) => GROUP,
            (GROUP, GROUP) => GROUP,
            (MASK, GROUP) => OTHER,
            (OTHER, OTHER) => 0,
            (OTHER, GROUP) if !named => 0,
            _ => return None,
        };
        named |= matches!(tag, USER | GROUP);
        if permissions & !7 != 0 {
            return None;
        }
        stored.extend_from_slice(if matches!(tag, USER | GROUP) { entry } else { &entry[..4] });
    }
    (state == 0).then_some(stored)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = ATTRIBUTE_VERSION.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&permissions.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        value
    }

    #[test]
    fn only_named_entries_keep_their_id() {
        let value = list(&[
            (USER_OBJ, 6, u32::MAX),
            (USER, 7, 1000),
            (GROUP_OBJ, 4, u32::MAX),
            (MASK, 7, u32::MAX),
            (OTHER, 4, u32::MAX),
        ]);
        let expected = [1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 7, 0, 0xe8, 3, 0, 0, 4, 0, 4, 0, 16, 0, 7, 0, 32, 0, 4, 0];
        assert_eq!(to_disk(&value).unwrap(), expected);
    }

    #[test]
    fn lists_that_the_kernel_refuses_are_refused() {
        let good = [(USER_OBJ, 6, 0), (GROUP_OBJ, 4, 0), (OTHER, 4, 0)];
        assert!(to_disk(&list(&good)).is_some());
        assert!(to_disk(&list(&good[..2])).is_none(), "no entry for others");
        assert!(to_disk(&list(&[])).is_none());
        assert!(to_disk(&list(&[good[1], good[0], good[2]])).is_none(), "out of order");
        assert!(to_disk(&list(&[good[0], (USER, 7, 1), good[1], good[2]])).is_none(), "named user without a mask");
        assert!(to_disk(&list(&[(USER_OBJ, 8, 0), good[1], good[2]])).is_none(), "no such permission");
        assert!(to_disk(&list(&[good[0], good[1], good[2], good[2]])).is_none(), "something behind the end");
        assert!(to_disk(&list(&[good[0], good[1], good[2], (0x40, 0, 0)])).is_none(), "no such tag");
        assert!(to_disk(&list(&good)[..11]).is_none(), "cut short");
        assert!(to_disk(&[1, 0, 0, 0]).is_none(), "another version");
        assert!(to_disk(&[2, 0]).is_none());
    }
}
