//! The id of the store, in the data folder's file `store`.
//!
//! ```text
//!   st_<32 hex digits> begun     a first start is under way: the database may not have the id yet
//!   st_<32 hex digits>           the database has it
//! ```
//! The database has the same id. So a folder that is mounted in another's place, and a database that was made or restored beside
//! the wrong folder, are noticed before anything is removed. This module only reads and writes the file; the comparison is the
//! caller's.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use nullspace_types::StoreId;

use crate::folders::{io_error, read_text, rename_over, sync_tree};
use crate::{ArtifactStore, DataError, Result};

const FILE: &str = "store";
/// What follows the id while the database may not have it.
const BEGUN: &str = " begun";
/// Most bytes of the file.
const LONGEST: u64 = 256;

/// The contents of the file `store`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreMark {
    /// The id.
    pub id: StoreId,
    /// The database has the id. Otherwise a first start has begun and perhaps not ended.
    pub settled: bool,
}

/// Reads the store id of a data folder, which need not be opened; `None` when it has none.
///
/// # Errors
/// [`DataError::Corrupt`] for other contents; [`DataError::Io`] when the file cannot be read.
pub fn store_mark(data_dir: &Path) -> Result<Option<StoreMark>> {
    let Some(text) = read_text(&data_dir.join(FILE), LONGEST)? else { return Ok(None) };
    let text = text.trim_end();
    let (id, settled) = match text.strip_suffix(BEGUN) {
        Some(id) => (id, false),
        None => (text, true),
    };
    let id = id.parse().map_err(|_| DataError::corrupt("the data directory's file store"))?;
    Ok(Some(StoreMark { id, settled }))
}

impl ArtifactStore {
    /// The store id of this data folder; see [`store_mark`].
    ///
    /// # Errors
    /// As [`store_mark`].
    pub fn store_mark(&self) -> Result<Option<StoreMark>> {
        store_mark(self.root())
    }

    /// Writes the file `store`, whole and durable, over the one that is there. Blocks for a moment.
    ///
    /// # Errors
    /// [`DataError::Io`] when the disk fails; the earlier file stays then.
    pub fn put_store_mark(&self, mark: StoreMark) -> Result<()> {
        let scratch = self.scratch()?;
        let made = scratch.path().join(FILE);
        let text = format!("{}{}\n", mark.id, if mark.settled { "" } else { BEGUN });
        File::create_new(&made)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(io_error("write", &made))?;
        sync_tree(&made)?;
        rename_over(&made, &self.root().join(FILE))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_id_is_read_as_it_was_written_and_other_text_is_an_error() {
        let dir = tempfile::TempDir::new().unwrap();
        assert_eq!(store_mark(&dir.path().join("none")).unwrap(), None);
        let store = ArtifactStore::open(dir.path()).unwrap();
        assert_eq!(store.store_mark().unwrap(), None);
        let id = StoreId::new();
        for settled in [false, true, false] {
            let mark = StoreMark { id, settled };
            store.put_store_mark(mark).unwrap();
            assert_eq!(store_mark(dir.path()).unwrap(), Some(mark));
        }
        drop(store);
        // The start of a process leaves it.
        let store = ArtifactStore::open(dir.path()).unwrap();
        assert_eq!(store.store_mark().unwrap(), Some(StoreMark { id, settled: false }));
        for wrong in ["", "\n", "st_", &format!("{id} other"), &format!("x{id}"), &"st_".repeat(1000)] {
            fs::write(dir.path().join(FILE), wrong).unwrap();
            assert!(matches!(store.store_mark(), Err(DataError::Corrupt { .. })), "{wrong}");
        }
    }
}
