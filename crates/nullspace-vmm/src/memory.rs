//! Guest memory as anonymous files, and the memory of snapshots that machines share.
//!
//! ```text
//!   snapshot/memory --copy once--> sealed memfd --MAP_PRIVATE--> QEMU of sandbox 1   pages it writes are its own
//!                                       |      --MAP_PRIVATE--> QEMU of sandbox 2
//!                                  TemplateMemory: unused ones stay up to a limit, the longest unused go first
//! ```
//!
//! The reason for a copy: QEMU up to 8.1 opens its memory file for writing even when it maps it privately. A machine that breaks
//! out of QEMU could then write into the file that all later sandboxes start from. A memfd sealed with `F_SEAL_WRITE`
//! lets itself be opened and mapped privately, and nobody, root included, can change its bytes any more.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use tokio::sync::OnceCell;

use crate::sparse;

/// A new anonymous file of `len` zero bytes that takes no memory yet. Its mode lets any uid open it that got hold of it.
pub(crate) fn anonymous(name: &str, len: u64) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags)?, // Linux before 6.3
        other => other?,
    };
    let file = File::from(fd);
    file.set_len(len)?;
    Ok(file)
}

/// Makes an anonymous file immutable for ever. Fails while anybody maps it shared and writable.
pub(crate) fn seal(file: &File) -> io::Result<()> {
    Ok(rustix::fs::fcntl_add_seals(file, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?)
}

/// The immutable memory of one snapshot.
#[derive(Debug)]
struct Sealed {
    file: File,
    bytes: u64,
}

impl Sealed {
    fn new(file: File) -> io::Result<Self> {
        seal(&file)?;
        let bytes = sparse::stored_bytes(&file.metadata()?);
        Ok(Self { file, bytes })
    }
}

/// The identity of the file on disk that some memory was made from. A rename keeps it, a rewrite does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Origin {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
}

impl Origin {
    fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self { device: meta.dev(), inode: meta.ino(), len: meta.len(), modified: (meta.mtime(), meta.mtime_nsec()) })
    }
}

/// Memory of snapshots, loaded once each.
#[derive(Debug)]
pub(crate) struct TemplateMemory {
    limit_bytes: u64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    slots: HashMap<Origin, Slot>,
    uses: u64,
}

#[derive(Debug)]
struct Slot {
    cell: Arc<OnceCell<Arc<Sealed>>>,
    last_use: u64,
}

impl TemplateMemory {
    /// Keeps memory that no machine uses up to `limit_bytes`; what machines use is kept in any case.
    pub(crate) fn new(limit_bytes: u64) -> Arc<Self> {
        Arc::new(Self { limit_bytes, inner: Mutex::default() })
    }

    /// The memory in `file`, `len` bytes: at once when it was loaded before, else read in. Concurrent callers load once.
    pub(crate) async fn get(self: &Arc<Self>, file: File, len: u64) -> io::Result<MemoryLease> {
        let origin = Origin::of(&file)?;
        if origin.len != len {
            let message = format!("the snapshot's memory has {} bytes, not {len}", origin.len);
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let cell = self.touch(origin);
        let load = || async move {
            let load = move || {
                let memory = anonymous("nullspace-template", 0)?;
                sparse::copy(&file, &memory, len)?;
                Sealed::new(memory)
            };
            tokio::task::spawn_blocking(load).await.map_err(io::Error::other)?.map(Arc::new)
        };
        let sealed = match cell.get_or_try_init(load).await {
            Ok(sealed) => sealed.clone(),
            Err(error) => {
                drop(cell);
                self.trim();
                return Err(error);
            }
        };
        drop(cell);
        let lease = MemoryLease { sealed: Some(sealed), owner: self.clone() };
        self.trim();
        Ok(lease)
    }

    fn touch(&self, origin: Origin) -> Arc<OnceCell<Arc<Sealed>>> {
        let mut inner = self.lock();
        inner.uses += 1;
        let uses = inner.uses;
        let slot = inner.slots.entry(origin).or_insert_with(|| Slot { cell: Arc::default(), last_use: uses });
        slot.last_use = uses;
        slot.cell.clone()
    }

    /// Memory that is held now, bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.lock().slots.values().filter_map(|slot| slot.cell.get()).map(|sealed| sealed.bytes).sum()
    }

    /// Lets unused memory go, the longest unused first, until the limit holds.
    fn trim(&self) {
        self.trim_to(self.limit_bytes);
    }

    /// The same with another limit.
    pub(crate) fn trim_to(&self, limit_bytes: u64) {
        let mut inner = self.lock();
        // A slot that someone is loading has a second owner of its cell; a failed load leaves an empty cell.
        inner.slots.retain(|_, slot| slot.cell.initialized() || Arc::strong_count(&slot.cell) > 1);
        let mut total: u64 = inner.slots.values().filter_map(|slot| slot.cell.get()).map(|sealed| sealed.bytes).sum();
        while total > limit_bytes {
            let unused = |slot: &Slot| slot.cell.get().is_some_and(|sealed| Arc::strong_count(sealed) == 1);
            let oldest = inner.slots.iter().filter(|(_, slot)| unused(slot)).min_by_key(|(_, slot)| slot.last_use);
            let Some(origin) = oldest.map(|(origin, _)| *origin) else { break };
            if let Some(sealed) = inner.slots.remove(&origin).and_then(|slot| slot.cell.get().cloned()) {
                total = total.saturating_sub(sealed.bytes);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One machine's hold on a snapshot's memory.
#[derive(Debug)]
pub(crate) struct MemoryLease {
    /// `None` only while it is dropped.
    sealed: Option<Arc<Sealed>>,
    owner: Arc<TemplateMemory>,
}

impl MemoryLease {
    /// A descriptor for the machine's process.
    pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
        let sealed = self.sealed.as_ref().ok_or(io::ErrorKind::NotFound)?;
        sealed.file.as_fd().try_clone_to_owned()
    }
}

impl Drop for MemoryLease {
    fn drop(&mut self) {
        self.sealed = None; // unused from here on, which `trim` looks at
        self.owner.trim();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    const LEN: u64 = 1 << 20;

    fn snapshot(byte: u8) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LEN).unwrap();
        file.write_all_at(&[byte; 8192], 4096).unwrap();
        file
    }

    fn kept(memory: &TemplateMemory) -> usize {
        memory.lock().slots.len()
    }

    fn first_byte(lease: &MemoryLease) -> u8 {
        let mut byte = [0];
        File::from(lease.descriptor().unwrap()).read_exact_at(&mut byte, 4096).unwrap();
        byte[0]
    }

    #[tokio::test]
    #[allow(unsafe_code, reason = "maps a file and writes to the mapping, as QEMU does")]
    async fn nobody_can_change_the_memory_of_a_template() {
        let memory = TemplateMemory::new(LEN);
        let lease = memory.get(snapshot(7), LEN).await.unwrap();
        // What QEMU does: open it for writing, map it privately, write to the mapping.
        let fd = lease.descriptor().unwrap();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
        let file = File::options().read(true).write(true).open(path).unwrap();
        assert_eq!(file.write_at(b"x", 4096).unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert!(file.set_len(0).is_err());
        let map = |flags| {
            let protection = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
            // SAFETY: a new mapping of its own place, unmapped by nobody before the process ends.
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), LEN as usize, protection, flags, &file, 0) }
        };
        assert_eq!(map(rustix::mm::MapFlags::SHARED).unwrap_err(), Errno::PERM);
        let private = map(rustix::mm::MapFlags::PRIVATE).unwrap().cast::<u8>();
        // SAFETY: inside the mapping, which nobody else knows.
        unsafe { private.add(4096).write_volatile(9) };
        assert_eq!(first_byte(&lease), 7);
    }

    #[tokio::test]
    async fn concurrent_machines_share_one_copy() {
        let memory = TemplateMemory::new(LEN);
        let file = snapshot(1);
        let (a, b) = tokio::join!(memory.get(file.try_clone().unwrap(), LEN), memory.get(file, LEN));
        let inode = |lease: &MemoryLease| File::from(lease.descriptor().unwrap()).metadata().unwrap().ino();
        assert_eq!(inode(&a.unwrap()), inode(&b.unwrap()));
        assert_eq!(kept(&memory), 1);
    }

    #[tokio::test]
    async fn beyond_the_limit_the_longest_unused_goes_and_what_is_used_stays() {
        // One template takes 8 KiB here.
        let memory = TemplateMemory::new(20_000);
        let files = [snapshot(1), snapshot(2), snapshot(3)];
        let get = |index: usize| memory.get(files[index].try_clone().unwrap(), LEN);
        let leases = [get(0).await.unwrap(), get(1).await.unwrap(), get(2).await.unwrap()];
        assert_eq!(kept(&memory), 3, "all are in use");
        let [first, second, third] = leases;
        drop(first);
        assert_eq!(kept(&memory), 2, "over the limit, so the unused one goes at once");
        drop(second);
        drop(third);
        assert_eq!(kept(&memory), 2, "within the limit, so unused ones stay");
        assert_eq!(first_byte(&get(0).await.unwrap()), 1);
        let kept: Vec<u64> = memory.lock().slots.keys().map(|origin| origin.inode).collect();
        assert!(!kept.contains(&files[1].metadata().unwrap().ino()));
    }

    #[tokio::test]
    async fn a_file_of_another_size_is_refused_and_leaves_nothing() {
        let memory = TemplateMemory::new(LEN);
        assert!(memory.get(snapshot(1), 2 * LEN).await.is_err());
        assert_eq!(kept(&memory), 0);
    }
}
