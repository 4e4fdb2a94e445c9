//! Kernel and initramfs, opened once for all machines.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::{GuestImage, VmmError, memory, sparse};

/// ELF notes are read up to this many bytes; a kernel's have a few hundred.
const MAX_NOTES: u64 = 64 * 1024;

/// Kernel and initramfs as descriptors that any uid may open again by `/proc/self/fd`.
#[derive(Debug)]
pub(super) struct GuestFiles {
    kernel: File,
    initramfs: File,
    /// BLAKE3 of the bzImage and of the initramfs, hex.
    pub(super) digest: String,
}

impl GuestFiles {
    /// Opens and hashes the files. Blocks.
    pub(super) fn open(image: &GuestImage) -> Result<Self, VmmError> {
        let open = |path: &Path| {
            let failed = |source| VmmError::Io { context: format!("open {}", path.display()), source };
            File::open(path).and_then(for_anyone).map_err(failed)
        };
        let (vmlinuz, initramfs) = (open(&image.vmlinuz)?, open(&image.initramfs)?);
        let digest = digest([&vmlinuz, &initramfs])
            .map_err(|source| VmmError::Io { context: "read the guest kernel and initramfs".into(), source })?;
        // An ELF kernel need not unpack itself first: 0.2 s less to boot under TCG, and 27 MB less in each snapshot.
        let elf = match &image.vmlinux {
            Some(path) => Some(open(path)?).filter(|file| has_pvh_entry(file).unwrap_or(false)),
            None => None,
        };
        Ok(Self { kernel: elf.unwrap_or(vmlinuz), initramfs, digest })
    }

    /// Descriptors for one machine: kernel, initramfs.
    pub(super) fn descriptors(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        Ok((self.kernel.try_clone()?.into(), self.initramfs.try_clone()?.into()))
    }
}

/// The file itself when everybody may read it, else a sealed copy of it in memory.
fn for_anyone(file: File) -> io::Result<File> {
    let meta = file.metadata()?;
    if meta.mode() & 0o004 != 0 {
        return Ok(file);
    }
    let copy = memory::anonymous("nullspace-boot", 0)?;
    sparse::copy(&file, &copy, meta.len())?;
    memory::seal(&copy)?;
    Ok(copy)
}

fn digest(files: [&File; 2]) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 256 * 1024];
    for file in files {
        // The length first, so that bytes cannot move from one file to the other unseen.
        hasher.update(&file.metadata()?.len().to_le_bytes());
        let mut at = 0;
        loop {
            let count = file.read_at(&mut buffer, at)?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            at += count as u64;
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// True when the ELF file tells its 32-bit entry point by the note `XEN_ELFNOTE_PHYS32_ENTRY`, without which QEMU does
/// not boot it (Linux: `CONFIG_PVH`).
fn has_pvh_entry(file: &File) -> io::Result<bool> {
    const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
    const PT_NOTE: u32 = 4;
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0)?;
    // 64-bit, little-endian.
    if header[..6] != *b"\x7fELF\x02\x01" {
        return Ok(false);
    }
    let (table, entry_size, entries) = (u64_at(&header, 32), u16_at(&header, 54), u16_at(&header, 56));
    for index in 0..u64::from(entries) {
        let mut entry = [0; 56];
        let at = index.checked_mul(u64::from(entry_size)).and_then(|offset| table.checked_add(offset));
        file.read_exact_at(&mut entry, at.ok_or(io::ErrorKind::InvalidData)?)?;
        if u32_at(&entry, 0) != PT_NOTE {
            continue;
        }
        let mut notes = Vec::new();
        let size = u64_at(&entry, 32).min(MAX_NOTES);
        ReadAt { file, at: u64_at(&entry, 8) }.take(size).read_to_end(&mut notes)?;
        let mut rest = &notes[..];
        while let Some(head) = rest.get(..12) {
            let (name, description, kind) = (u32_at(head, 0) as usize, u32_at(head, 4) as usize, u32_at(head, 8));
            if kind == XEN_ELFNOTE_PHYS32_ENTRY && rest.get(12..16) == Some(b"Xen\0") {
                return Ok(true);
            }
            let skip = name.next_multiple_of(4).checked_add(description.next_multiple_of(4));
            rest = skip.and_then(|skip| rest.get(skip.checked_add(12)?..)).unwrap_or_default();
        }
    }
    Ok(false)
}

struct ReadAt<'a> {
    file: &'a File,
    at: u64,
}

impl Read for ReadAt<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at = self.at.saturating_add(count as u64);
        Ok(count)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|part| part.try_into().ok()).map_or(0, u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|part| part.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|part| part.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn elf(notes: &[u8]) -> File {
        let mut bytes = vec![0u8; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[32] = 64; // program headers
        bytes[54] = 56; // size of each
        bytes[56] = 1; // how many
        let mut entry = [0u8; 56];
        entry[0] = 4; // PT_NOTE
        entry[8] = 120; // where
        entry[32..36].copy_from_slice(&(notes.len() as u32).to_le_bytes());
        bytes.extend(entry);
        bytes.extend(notes);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file
    }

    fn note(name: &[u8], kind: u32, description: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        note.extend((name.len() as u32).to_le_bytes());
        note.extend((description.len() as u32).to_le_bytes());
        note.extend(kind.to_le_bytes());
        note.extend(name);
        note.resize(note.len().next_multiple_of(4), 0);
        note.extend(description);
        note.resize(note.len().next_multiple_of(4), 0);
        note
    }

    #[test]
    fn a_kernel_with_a_pvh_entry_is_known() {
        let with = [note(b"GNU\0", 3, b"12345"), note(b"Xen\0", 18, &[0; 4])].concat();
        assert!(has_pvh_entry(&elf(&with)).unwrap());
        let without = [note(b"GNU\0", 18, b"1234"), note(b"Xen\0", 17, &[0; 4])].concat();
        assert!(!has_pvh_entry(&elf(&without)).unwrap());
        // A note that claims to be longer than the file.
        let mut huge = note(b"Xen\0", 1, &[0; 4]);
        huge[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(!has_pvh_entry(&elf(&huge)).unwrap());
        let mut other = tempfile::tempfile().unwrap();
        other.write_all(&[b'M'; 100]).unwrap();
        assert!(!has_pvh_entry(&other).unwrap());
    }

    #[test]
    fn a_private_file_is_copied_for_other_uids_and_hashes_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let image = GuestImage {
            vmlinuz: folder.path().join("vmlinuz"),
            vmlinux: None,
            initramfs: folder.path().join("initramfs"),
        };
        std::fs::write(&image.vmlinuz, b"kernel").unwrap();
        std::fs::write(&image.initramfs, b"initramfs").unwrap();
        let set_mode = |mode| std::fs::set_permissions(&image.vmlinuz, PermissionsExt::from_mode(mode)).unwrap();
        set_mode(0o644);
        let open = GuestFiles::open(&image).unwrap();
        set_mode(0o600);
        let private = GuestFiles::open(&image).unwrap();
        assert_eq!(open.digest, private.digest);
        assert_ne!(private.kernel.metadata().unwrap().mode() & 0o004, 0);
        std::fs::write(&image.initramfs, b"initramfs2").unwrap();
        assert_ne!(GuestFiles::open(&image).unwrap().digest, open.digest);
    }

    #[test]
    fn a_missing_file_is_named() {
        let image = GuestImage { vmlinuz: "/nonexistent/k".into(), vmlinux: None, initramfs: "/nonexistent/i".into() };
        assert_eq!(GuestFiles::open(&image).unwrap_err().to_string(), "open /nonexistent/k");
    }
}
