//! Files of the data folder with keys of the service. Their contents are text for the service; this module only keeps them whole,
//! durable and readable by their owner alone.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use crate::folders::{io_error, read_text, rename_over, sync_tree};
use crate::{ArtifactStore, Result};

/// Most bytes of a file.
const LONGEST: u64 = 4096;
/// Only the service's own user reads it.
const MODE: u32 = 0o600;

/// A file with keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyFile {
    /// `seal.key`: the keys that seal secrets in the database.
    Seal,
    /// `ssh_host.key`: the key that clients know the SSH server by.
    SshHost,
    /// `ssh_authority.key`: the key that signs certificates for SSH.
    SshAuthority,
}

impl KeyFile {
    /// Its name in the data folder.
    pub fn name(self) -> &'static str {
        match self {
            KeyFile::Seal => "seal.key",
            KeyFile::SshHost => "ssh_host.key",
            KeyFile::SshAuthority => "ssh_authority.key",
        }
    }
}

impl ArtifactStore {
    /// The contents of a key file; `None` when there is none. Blocks for a moment.
    ///
    /// # Errors
    /// [`DataError::Io`](crate::DataError::Io) when it cannot be read.
    pub fn key_file(&self, file: KeyFile) -> Result<Option<String>> {
        read_text(&self.root().join(file.name()), LONGEST)
    }

    /// Writes a key file, whole and durable, over the one that is there. Blocks for a moment.
    ///
    /// # Errors
    /// [`DataError::Io`](crate::DataError::Io) when the disk fails; the earlier file stays then.
    pub fn put_key_file(&self, file: KeyFile, text: &str) -> Result<()> {
        let scratch = self.scratch()?;
        let made = scratch.path().join(file.name());
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(MODE)
            .open(&made)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(io_error("write", &made))?;
        sync_tree(&made)?;
        rename_over(&made, &self.root().join(file.name()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_read_as_it_was_written_and_is_its_owners_alone() {
        let dir = tempfile::TempDir::new().unwrap();
        let store = ArtifactStore::open(dir.path()).unwrap();
        let files = [KeyFile::Seal, KeyFile::SshHost, KeyFile::SshAuthority];
        for file in files {
            assert_eq!(store.key_file(file).unwrap(), None);
            for text in ["1 aa\n".to_owned(), format!("2 {file:?}\n1 aa\n")] {
                store.put_key_file(file, &text).unwrap();
                assert_eq!(store.key_file(file).unwrap(), Some(text));
                let mode = std::fs::metadata(dir.path().join(file.name())).unwrap().permissions().mode();
                assert_eq!(mode & 0o777, MODE);
            }
        }
        for file in files {
            assert_eq!(store.key_file(file).unwrap(), Some(format!("2 {file:?}\n1 aa\n")));
        }
    }
}
