//! The name under which a data folder's service owns leases and sandboxes.
//!
//! The system's host name cannot be used: a container has another after each start, and the leases of the earlier name would
//! have no owner.

use std::{
    fs,
    io::{self, Read, Write},
};

use crate::{
    ArtifactStore, DataError, Result,
    folders::{io_error, rename_over, sync_tree},
};

const FILE: &str = "host";
/// Most bytes of a name.
const LONGEST: u64 = 256;

impl ArtifactStore {
    /// The name of this data folder's service since its first start. The first call stores `now`.
    pub fn host(&self, now: &str) -> Result<String> {
        let path = self.root().join(FILE);
        match fs::File::open(&path) {
            Ok(file) => {
                let mut name = String::new();
                file.take(LONGEST).read_to_string(&mut name).map_err(io_error("read", &path))?;
                let name = name.trim();
                if name.is_empty() {
                    Err(DataError::corrupt("the data directory's file host"))
                } else {
                    Ok(name.to_owned())
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let scratch = self.scratch()?;
                let made = scratch.path().join(FILE);
                fs::File::create_new(&made)
                    .and_then(|mut file| file.write_all(now.as_bytes()))
                    .map_err(io_error("write", &made))?;
                sync_tree(&made)?;
                rename_over(&made, &path)?;
                Ok(now.to_owned())
            }
            Err(error) => Err(io_error("open", &path)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_is_renamed_keeps_what_it_owns() {
        let dir = tempfile::TempDir::new().unwrap();
        let store = ArtifactStore::open(dir.path()).unwrap();
        assert_eq!(store.host("3f1c").unwrap(), "3f1c");
        drop(store);
        let store = ArtifactStore::open(dir.path()).unwrap();
        assert_eq!(store.host("another").unwrap(), "3f1c");
        fs::write(dir.path().join(FILE), "\n").unwrap();
        assert!(store.host("another").is_err());
    }
}
