//! The file `seal.key` of the data folder: the keys that seal secrets in the database. Its contents are text for the service; this
//! module only keeps it whole, durable and readable by its owner alone.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use crate::folders::{io_error, read_text, rename_over, sync_tree};
use crate::{ArtifactStore, Result};

const FILE: &str = "seal.key";
/// Most bytes of the file.
const LONGEST: u64 = 4096;
/// Only the service's own user reads it.
const MODE: u32 = 0o600;

impl ArtifactStore {
    /// The contents of `seal.key`; `None` when there is none. Blocks for a moment.
    ///
    /// # Errors
    /// [`DataError::Io`](crate::DataError::Io) when it cannot be read.
    pub fn seal_key(&self) -> Result<Option<String>> {
        read_text(&self.root().join(FILE), LONGEST)
    }

    /// Writes `seal.key`, whole and durable, over the one that is there. Blocks for a moment.
    ///
    /// # Errors
    /// [`DataError::Io`](crate::DataError::Io) when the disk fails; the earlier file stays then.
    pub fn put_seal_key(&self, text: &str) -> Result<()> {
        let scratch = self.scratch()?;
        let made = scratch.path().join(FILE);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(MODE)
            .open(&made)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(io_error("write", &made))?;
        sync_tree(&made)?;
        rename_over(&made, &self.root().join(FILE))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_file_is_read_as_it_was_written_and_is_its_owners_alone() {
        let dir = tempfile::TempDir::new().unwrap();
        let store = ArtifactStore::open(dir.path()).unwrap();
        assert_eq!(store.seal_key().unwrap(), None);
        for text in ["1 aa\n", "2 bb\n1 aa\n"] {
            store.put_seal_key(text).unwrap();
            assert_eq!(store.seal_key().unwrap().as_deref(), Some(text));
            let mode = std::fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, MODE);
        }
    }
}
