//! The first and only process of the guest that `guest.rs` boots: mounts one filesystem after the other, says what is in
//! each, writes to it, and powers off.
//!
//! ```text
//!  /modules, /plan (lines "offset length")        from the initramfs
//!  the disk without the mark: the images          each becomes a partition for as long as it is looked at
//!  the disk with the mark: what was found         length, then text; see `list`
//! ```
//! Compiled by the test with rustc alone, so that there is a static program; hence no crates, and declarations of libc's
//! functions by hand.

#![allow(unsafe_code, reason = "this program runs as PID 1 and has only the standard library")]

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr, c_char, c_int, c_long, c_ulong, c_void};
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Result, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

unsafe extern "C" {
    fn mount(source: *const c_char, target: *const c_char, kind: *const c_char, flags: c_ulong, data: *const c_void) -> c_int;
    fn umount2(target: *const c_char, flags: c_int) -> c_int;
    fn reboot(command: c_int) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn llistxattr(path: *const c_char, list: *mut c_char, size: usize) -> isize;
    fn lgetxattr(path: *const c_char, name: *const c_char, value: *mut c_void, size: usize) -> isize;
}

const FINIT_MODULE: c_long = 313;
const BLKPG: c_ulong = 0x1269;
const MARK: &[u8] = b"nullspace: lists go here";
const WRITTEN: &str = "/mnt/written by the guest";

/// `struct blkpg_ioctl_arg`.
#[repr(C)]
struct PartitionChange {
    operation: c_int,
    flags: c_int,
    length: c_int,
    data: *mut Partition,
}

/// `struct blkpg_partition`.
#[repr(C)]
struct Partition {
    start: i64,
    length: i64,
    number: c_int,
    names: [u8; 128],
}

fn main() {
    let outcome = run();
    if let Err(error) = &outcome {
        eprintln!("lister: {error}");
    }
    // RB_AUTOBOOT: with QEMU's -no-reboot this is its end.
    unsafe { reboot(0x0123_4567) };
}

fn c(text: impl AsRef<OsStr>) -> CString {
    CString::new(text.as_ref().as_bytes()).expect("no NUL")
}

fn checked(what: &str, outcome: c_int) -> Result<()> {
    if outcome == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    Err(std::io::Error::new(error.kind(), format!("{what}: {error}")))
}

fn attach(source: &str, target: &str, kind: &str, read_only: bool) -> Result<()> {
    let (source, target, kind) = (c(source), c(target), c(kind));
    let flags = c_ulong::from(read_only);
    let outcome = unsafe { mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) };
    checked("mount", outcome)
}

fn detach() -> Result<()> {
    let target = c("/mnt");
    checked("umount", unsafe { umount2(target.as_ptr(), 0) })
}

fn run() -> Result<()> {
    for directory in ["/dev", "/mnt"] {
        fs::create_dir_all(directory)?;
    }
    let _ = attach("dev", "/dev", "devtmpfs", false);
    for name in fs::read_to_string("/modules/order")?.lines() {
        let module = File::open(Path::new("/modules").join(name))?;
        unsafe { syscall(FINIT_MODULE, c_long::from(module.as_raw_fd()), c"".as_ptr(), 0 as c_long) };
    }
    let disks = [await_disk("/dev/vda")?, await_disk("/dev/vdb")?];
    let mut out = None;
    let mut images = None;
    for (mut file, name) in disks {
        let mut first = [0; MARK.len()];
        file.read_exact(&mut first)?;
        if first == MARK { out = Some(file) } else { images = Some((file, name)) }
    }
    let (Some(mut out), Some((images, name))) = (out, images) else {
        return Err(std::io::Error::other("the disks are not as expected"));
    };
    let mut text = String::new();
    for line in fs::read_to_string("/plan")?.lines() {
        let (start, length) = line.split_once(' ').expect("two numbers");
        let (start, length) = (start.parse().expect("a number"), length.parse().expect("a number"));
        partition(&images, 1, start, length)?;
        let device = format!("{name}1");
        await_disk(&device)?;
        if let Err(error) = look(&device, &mut text) {
            let _ = writeln!(text, "error\t{error}");
        }
        partition(&images, 2, 0, 0)?;
        text.push_str("end\n");
    }
    complaints(&mut text)?;
    out.seek(SeekFrom::Start(0))?;
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(text.as_bytes())?;
    out.sync_all()
}

fn await_disk(path: &str) -> Result<(File, String)> {
    let begun = Instant::now();
    loop {
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => return Ok((file, path.to_owned())),
            Err(error) if begun.elapsed() > Duration::from_secs(60) => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Adds (1) or removes (2) partition 1.
fn partition(disk: &File, operation: c_int, start: i64, length: i64) -> Result<()> {
    let mut partition = Partition { start, length, number: 1, names: [0; 128] };
    let length = size_of::<Partition>() as c_int;
    let change = PartitionChange { operation, flags: 0, length, data: &mut partition };
    checked("partition", unsafe { ioctl(disk.as_raw_fd(), BLKPG, &change) })
}

/// Lists a filesystem as it was made, then sees that it takes a file and still has it after it was unmounted.
fn look(device: &str, text: &mut String) -> Result<()> {
    attach(device, "/mnt", "ext4", false)?;
    let listed = list(text);
    let mut file = File::create(WRITTEN)?;
    file.write_all(device.as_bytes())?;
    file.sync_all()?;
    drop(file);
    detach()?;
    listed?;
    attach(device, "/mnt", "ext4", true)?;
    let read = fs::read(WRITTEN);
    detach()?;
    if read? != device.as_bytes() {
        return Err(std::io::Error::other("what was written is not there"));
    }
    Ok(())
}

/// A line for each name: path, type and mode, owner, group, seconds, nanoseconds, names, inode, size, checksum or target,
/// then `attribute=value`; between tabs, with Rust's byte escapes.
fn list(text: &mut String) -> Result<()> {
    let mut work = vec![PathBuf::from("/mnt")];
    while let Some(path) = work.pop() {
        let metadata = path.symlink_metadata()?;
        let name = path.strip_prefix("/mnt").expect("it is below").as_os_str().as_bytes();
        let content = if metadata.is_dir() {
            for entry in fs::read_dir(&path)? {
                work.push(entry?.path());
            }
            String::new()
        } else if metadata.is_symlink() {
            fs::read_link(&path)?.as_os_str().as_bytes().escape_ascii().to_string()
        } else {
            format!("{:08x}", checksum(&path)?)
        };
        let size = if metadata.is_file() { metadata.size() } else { 0 };
        let _ = write!(
            text,
            "{}\t{:o}\t{}\t{}\t{}\t{}\t{}\t{}\t{size}\t{content}",
            name.escape_ascii(),
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.nlink(),
            metadata.ino(),
        );
        for (name, value) in attributes(&path) {
            let _ = write!(text, "\t{}={}", name.escape_ascii(), value.escape_ascii());
        }
        text.push('\n');
    }
    Ok(())
}

/// The extended attributes, sorted; one that cannot be read has the error's number as its value.
fn attributes(path: &Path) -> BTreeSet<(Vec<u8>, Vec<u8>)> {
    let path = c(path);
    let mut names = vec![0_u8; 1 << 16];
    let length = unsafe { llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(usize::try_from(length).unwrap_or(0));
    let mut value = vec![0_u8; 1 << 16];
    let mut read = |name: &[u8]| {
        let name = CString::new(name).expect("no NUL");
        let length = unsafe { lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        match usize::try_from(length) {
            Ok(length) => value[..length].to_vec(),
            Err(_) => std::io::Error::last_os_error().to_string().into_bytes(),
        }
    };
    names.split(|&byte| byte == 0).filter(|name| !name.is_empty()).map(|name| (name.to_vec(), read(name))).collect()
}

/// CRC-32 of a file, as zlib has it; eight bytes at a step.
fn checksum(path: &Path) -> Result<u32> {
    static TABLES: std::sync::LazyLock<Vec<[u32; 256]>> = std::sync::LazyLock::new(|| {
        let mut tables = vec![[0_u32; 256]; 8];
        for byte in 0..256 {
            let mut value = byte as u32;
            for _ in 0..8 {
                value = (value >> 1) ^ if value & 1 == 1 { 0xedb8_8320 } else { 0 };
            }
            tables[0][byte] = value;
        }
        for table in 1..8 {
            for byte in 0..256 {
                let before = tables[table - 1][byte];
                tables[table][byte] = (before >> 8) ^ tables[0][(before & 255) as usize];
            }
        }
        tables
    });
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 18];
    let mut sum = !0_u32;
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            return Ok(!sum);
        }
        let mut chunks = buffer[..length].chunks_exact(8);
        for chunk in &mut chunks {
            let word = u64::from_le_bytes(chunk.try_into().expect("eight bytes")) ^ u64::from(sum);
            sum = (0..8).fold(0, |sum, at| sum ^ TABLES[7 - at][(word >> (8 * at)) as usize & 255]);
        }
        for &byte in chunks.remainder() {
            sum = (sum >> 8) ^ TABLES[0][((sum ^ u32::from(byte)) & 255) as usize];
        }
    }
}

/// What the kernel found wrong with any of it.
fn complaints(text: &mut String) -> Result<()> {
    // O_NONBLOCK: the end is an error instead of a wait.
    let mut log = OpenOptions::new().read(true).custom_flags(0o4000).open("/dev/kmsg")?;
    let mut record = vec![0; 8192];
    while let Ok(length) = log.read(&mut record) {
        let record = String::from_utf8_lossy(&record[..length]).into_owned();
        let bad = ["EXT4-fs error", "EXT4-fs warning", "JBD2", "corrupt", "I/O error", "recovery"];
        if bad.iter().any(|bad| record.contains(bad)) {
            let _ = writeln!(text, "kernel\t{}", record.lines().next().unwrap_or_default());
        }
    }
    Ok(())
}
