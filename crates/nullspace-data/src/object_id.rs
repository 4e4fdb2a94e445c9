//! The id of the store in its object store, and which object store a data folder belongs to.
//!
//! ```text
//!   object `store`         st_<32 hex digits>: the same id as in the data folder's file `store`
//!   file `object_store`    where the folder's packs, uploads and logs are kept: they may be nowhere else
//! ```
//! This module only reads and writes the two; the comparison is the caller's.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use bytes::Bytes;
use nullspace_objects::{Error, ObjectName, Objects};
use nullspace_types::StoreId;

use crate::blobs::of_objects;
use crate::folders::{io_error, read_text, rename_over, sync_dir, sync_tree};
use crate::{ArtifactStore, DataError, Result};

/// The object, and most bytes of it.
const OBJECT: &str = "store";
const LONGEST_OBJECT: u64 = 256;
/// The file, and most bytes of it.
const FILE: &str = "object_store";
const LONGEST_FILE: u64 = 4096;

fn object() -> Result<ObjectName> {
    ObjectName::parse(OBJECT).map_err(|_| DataError::corrupt("name of the object store's id"))
}

/// The store id that an object store has; `None` when it has none.
///
/// # Errors
/// [`DataError::Corrupt`] for other contents; [`DataError::Objects`] when the store does not answer.
pub async fn object_store_id(objects: &Objects) -> Result<Option<StoreId>> {
    let bytes = match objects.get(&object()?, LONGEST_OBJECT).await {
        Ok(bytes) => bytes,
        Err(Error::NotFound { .. }) => return Ok(None),
        Err(Error::TooLong { .. }) => return Err(DataError::corrupt("the object `store` of the object store")),
        Err(error) => return Err(of_objects("read the id of the object store")(error)),
    };
    let id = std::str::from_utf8(&bytes).ok().and_then(|text| text.trim_end().parse().ok());
    id.map(Some).ok_or_else(|| DataError::corrupt("the object `store` of the object store"))
}

/// Where the data folder's packs, uploads and logs are kept beside it; `None` when they are in the folder alone.
///
/// # Errors
/// [`DataError::Io`] when the file cannot be read.
pub fn attached_store(data_dir: &Path) -> Result<Option<String>> {
    let text = read_text(&data_dir.join(FILE), LONGEST_FILE)?;
    Ok(text.map(|text| text.trim_end().to_owned()))
}

impl ArtifactStore {
    /// Gives the object store this id. One that has another id keeps it, unless it is to be `replaced`. Nothing without an object
    /// store.
    ///
    /// # Errors
    /// [`DataError::Conflict`] when the object store has another id; [`DataError::Objects`] when it does not answer.
    pub async fn put_object_store_id(&self, id: StoreId, replaced: bool) -> Result<()> {
        let Some(objects) = self.objects() else { return Ok(()) };
        match object_store_id(objects).await {
            Ok(Some(found)) if found == id => return Ok(()),
            Ok(None) => {}
            Ok(Some(_)) | Err(DataError::Corrupt { .. }) if replaced => {
                objects.delete(&object()?).await.map_err(of_objects("replace the id of the object store"))?;
            }
            Ok(Some(found)) => return Err(another(found)),
            Err(error) => return Err(error),
        }
        let bytes = Bytes::from(format!("{id}\n"));
        objects.put(&object()?, bytes).await.map_err(of_objects("write the id of the object store"))?;
        // Two that begin at the same time: the first one's stays.
        match object_store_id(objects).await? {
            Some(found) if found == id => Ok(()),
            Some(found) => Err(another(found)),
            None => Err(DataError::conflict("the object store does not show an object that it has just taken")),
        }
    }

    /// Notes durably that the object store at this place has what the folder may lack; `None`: the folder has everything.
    /// Blocks for a moment.
    ///
    /// # Errors
    /// [`DataError::Io`] when the disk fails; the earlier note stays then.
    pub fn put_attached_store(&self, location: Option<&str>) -> Result<()> {
        let path = self.root().join(FILE);
        let Some(location) = location else {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(io_error("remove", &path)(error)),
                Ok(()) => sync_dir(self.root()),
            };
        };
        if attached_store(self.root())?.as_deref() == Some(location) {
            return Ok(());
        }
        let scratch = self.scratch()?;
        let made = scratch.path().join(FILE);
        File::create_new(&made).and_then(|mut file| writeln!(file, "{location}")).map_err(io_error("write", &made))?;
        sync_tree(&made)?;
        rename_over(&made, &path)
    }
}

fn another(found: StoreId) -> DataError {
    DataError::conflict(format!("the object store belongs to another store: it has the id {found}"))
}
